"""Experts in the loop: a queue, a page to rate at, what the ratings are worth, and what PPO makes of them."""
