"""A model stepped: fed by the data, by itself, into the future."""
