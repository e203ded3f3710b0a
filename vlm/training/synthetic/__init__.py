"""Drawn charts and pages of print, with where every character stands, and questions about them."""
