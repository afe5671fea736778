"""Where a gradient comes from; figures."""
