"""A plugin with a misspelt hook."""

import eplbd


@eplbd.hookimpl
def eplbd_register_policy(register: eplbd.Register) -> None:
    register(type("Nobody", (), {"name": "misspelt", "eplbd_api": 1}))
