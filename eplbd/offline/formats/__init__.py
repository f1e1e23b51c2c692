"""Foreign formats of traces and placements, one module per engine. `registry` lists them."""
