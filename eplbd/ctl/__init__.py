"""`eplbd ctl`: orders to a running daemon, from the operator's side of the control socket."""
