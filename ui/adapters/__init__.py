"""The AdapterChoices page."""
