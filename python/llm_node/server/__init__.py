"""The HTTP server around the routes: the application, its life, and what every request passes."""
