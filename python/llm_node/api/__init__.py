"""The routes: a family of APIs is a folder. Translates between a family's words and `node`'s."""
