"""The commands: one module each, and one umbrella. Only here are configuration and components put together."""
