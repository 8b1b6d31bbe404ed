"""Settings: their groups, the command line and configuration files. Imports no torch."""
