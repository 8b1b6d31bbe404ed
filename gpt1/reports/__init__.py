"""Reports on logs and submissions: statistics, calibration, figures."""
