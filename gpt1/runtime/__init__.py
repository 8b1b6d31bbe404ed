"""The operating system and processes: errors, whole files, stopping, devices, ranks."""
