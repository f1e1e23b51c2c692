"""`eplbd top`: what a running daemon does, as a picture.

Reads the public event stream, nothing else; what a key changes goes the way of `eplbd ctl`. A
package of its own, so that a daemon never imports what draws.
"""
