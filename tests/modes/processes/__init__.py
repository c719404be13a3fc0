"""Programs that several processes run together, and what starts them."""
