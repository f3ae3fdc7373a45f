"""Servers that speak OpenAI's protocol, whatever they are asked for: bounded requests, and when to ask again."""
