"""Transcripts of the protocol."""
