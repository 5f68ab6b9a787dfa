"""Networks: actors, the Q ensemble and the image encoder. They hold layers only, no losses."""
