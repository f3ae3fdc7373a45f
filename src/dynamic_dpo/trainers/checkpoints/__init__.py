"""Checkpoints: whole or not there, of this run or refused, and going on from one."""
