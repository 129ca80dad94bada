"""How the tangent kernel of a network moves, or does not, while it trains, and what it prefers."""
