"""Whole clusters on a virtual clock: the decisions are the product's own, the world around them is made up."""
