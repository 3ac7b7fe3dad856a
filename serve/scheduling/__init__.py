"""Many callers, one model: whose row is prepared, joins the batch and leaves it, and when."""
