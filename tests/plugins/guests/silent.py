"""A plugin that registers nothing."""

import eplbd


@eplbd.hookimpl
def eplbd_register_policies(register: eplbd.Register) -> None:
    del register
