"""What every request goes through, whatever it asks: bounds, keys, the body's JSON, the log."""
