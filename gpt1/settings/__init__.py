"""Settings: their groups, the command line and configuration files. Knows no torch."""
