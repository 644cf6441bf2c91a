"""What is exported of trained models: functions with their signatures and examples."""
