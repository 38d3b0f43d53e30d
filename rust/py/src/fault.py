class Fault(Exception):
    """The one exception that Rust raises for anything a client or an engine did wrong."""

    def __init__(self, code, message, param=None, details=None):
        super().__init__(code, message, param, details)
        self.code = code
        self.message = message
        self.param = param
        self.details = details

    def __str__(self):
        return self.message
