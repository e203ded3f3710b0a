"""A run that can be killed at any moment: what is asked, in which order, what is written, and how it goes on."""
