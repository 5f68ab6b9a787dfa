"""Networks: actor backbones, the Q ensemble and the image encoder. nn.Modules only, no losses."""
