"""One module for each framework: the guard by that framework's own means of configuration."""
