"""Reading logs and submissions: statistics, calibration, figures."""
