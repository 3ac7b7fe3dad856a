"""Blind votes between two methods: what a vote is, where votes lie, how the next pair is drawn, and the ratings."""
