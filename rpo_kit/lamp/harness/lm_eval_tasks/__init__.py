"""lm-eval's tasks: one YAML file per LaMP task, and the functions that they name. lm-eval reads them by their path."""
