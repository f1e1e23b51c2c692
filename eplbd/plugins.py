"""Which policies there are: finding plugins, loading each one guarded, choosing a policy by name.

Owns discovery with provenance, the API version, the names of policies and their aliases. Finding
reads metadata only and is what the daemon may do; loading imports strangers' code and is for the
policy child. Must not know heat, processes or the wire.
"""

import fnmatch
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

import msgspec
import pluggy

from eplbd import hookspecs
from eplbd.errors import ConfigError, PolicyError
from eplbd.hookspecs import API, CAPABILITIES, Policy
from eplbd.sources import near

GROUP = "eplbd.policies"
ALIASES = {"0": "random", "1": "greedy", "2": "swift", "3": "flashlb"}
"""vllm-ascend's `eplb_policy_type`."""

_NAME = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class Plugin:
    """Where a plugin comes from. `module` is what is imported: a module's name or a `.py` file."""

    name: str
    module: str
    distribution: str = "-"
    version: str = "-"

    @property
    def is_explicit(self) -> bool:
        """Whether the operator named it in `plugins.modules`, rather than installed it."""
        return self.distribution == "-"

    def __str__(self) -> str:
        """Name and provenance, as error messages give them."""
        origin = self.module if self.distribution == "-" else f"{self.distribution} {self.version}"
        return self.name if origin == self.name else f"{self.name} ({origin})"


BUILT_IN = Plugin("hold", "eplbd.hold", "eplbd", metadata.version("eplbd"))


@dataclass(frozen=True, slots=True)
class Offer:
    """A policy that may be chosen."""

    policy: type[Policy]
    name: str
    plugin: Plugin


@dataclass(frozen=True, slots=True)
class Broken:
    """A plugin that offers nothing, and why: one sentence, and the whole traceback."""

    plugin: Plugin
    error: str
    traceback: str


def installed() -> list[Plugin]:
    """Every installed plugin by entry point, read from metadata; nothing is imported."""
    found = [
        Plugin(point.name, point.value, point.dist.name, point.dist.version)
        for point in metadata.entry_points(group=GROUP)
        if point.dist is not None
    ]
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))


def selected(enabled: Sequence[str], modules: Sequence[str]) -> list[Plugin]:
    """Plugins that the operator allows; nothing is imported.

    Args:
        enabled: names of entry points or distributions, with `*` as in file names.
        modules: importable names, or paths that end in `.py`.

    Raises:
        ConfigError: a name without `*` that no installed plugin has.
    """
    everything = installed()
    known = {word for plugin in everything for word in (plugin.name, plugin.distribution)}
    for pattern in enabled:
        if not set("*?[") & set(pattern) and pattern not in known:
            raise ConfigError(
                f"plugins.enabled: no installed plugin is called `{pattern}`{near(pattern, known)}"
            )
    chosen = [
        plugin
        for plugin in everything
        for pattern in enabled
        if fnmatch.fnmatchcase(plugin.name, pattern)
        or fnmatch.fnmatchcase(plugin.distribution, pattern)
    ]
    explicit = [
        Plugin(Path(module).stem if module.endswith(".py") else module, module)
        for module in modules
    ]
    return [*explicit, *dict.fromkeys(chosen)]


def canonical(name: str) -> str:
    """The policy that a name stands for: vllm-ascend's numbers are aliases."""
    return ALIASES.get(name, name)


class Catalogue:
    """The policies on offer, loaded as far as they were needed. `hold` is always among them."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self._hooks = pluggy.PluginManager(hookspecs.PROJECT)
        self._hooks.add_hookspecs(hookspecs)
        self._waiting = [BUILT_IN, *plugins]
        self._alone = len(self._waiting) == 1
        self.offers: dict[str, Offer] = {}
        self.broken: list[Broken] = []
        self._load(BUILT_IN)

    def load_all(self, announce: Callable[[Plugin], object]) -> None:
        """Load every plugin that has not been, announcing each; failures go to `broken`."""
        for plugin in [*self._waiting]:
            announce(plugin)
            self._load(plugin)

    def find(self, name: str) -> Offer:
        """The policy of that name, loading no more plugins than it takes.

        The modules that the operator named are asked first, then the installed plugin whose entry
        point bears the policy's name, so that others, which may be slow or broken, are not even
        imported.

        Raises:
            ConfigError: nobody offers it, with near matches.
            PolicyError: the plugin of that name could not be loaded.
        """
        wanted = canonical(name)
        for plugin in self._in_order(wanted):
            self._load(plugin)
            if wanted in self.offers:
                return self.offers[wanted]
        for broken in self.broken:
            if broken.plugin.name == wanted:
                raise PolicyError(f"plugin {broken.plugin} cannot be loaded\n{broken.traceback}")
        raise ConfigError(self._unknown(name, wanted))

    def _in_order(self, wanted: str) -> Iterator[Plugin]:
        by_name = sorted(self._waiting, key=lambda plugin: plugin.name != wanted)
        yield from (BUILT_IN, *(plugin for plugin in by_name if plugin.is_explicit))
        namesakes = [plugin for plugin in self._waiting if plugin.name == wanted]
        if len(namesakes) > 1:
            both = " and ".join(map(str, namesakes))
            raise ConfigError(
                f"policy `{wanted}`: {both} both claim the name; leave one out of plugins.enabled"
            )
        yield from (plugin for plugin in by_name if not plugin.is_explicit)

    def _load(self, plugin: Plugin) -> None:
        """Import one plugin and call its hook. All or nothing of it is offered."""
        if plugin not in self._waiting:
            return
        self._waiting.remove(plugin)
        offers: dict[str, Offer] = {}
        try:
            module = _import(plugin.module)
            if self._hooks.is_registered(module):  # a second entry point of the same module
                return
            self._hooks.register(module, name=plugin.module)
            self._hooks.check_pending()
            self._call(module, plugin, offers)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a stranger's code, supervised
            if self._hooks.has_plugin(plugin.module):
                self._hooks.unregister(name=plugin.module)
            trace = "".join(traceback.format_exception(error)[-20:])
            self.broken.append(Broken(plugin, _sentence(error), trace))
        else:
            self.offers.update(offers)

    def _call(self, module: ModuleType, plugin: Plugin, offers: dict[str, Offer]) -> None:
        def register(policy: type[Policy]) -> None:
            name = name_of(policy, plugin)
            taken = self.offers.get(name) or offers.get(name)
            if taken is not None:
                raise PolicyError(
                    f"policy `{name}` is offered by {taken.plugin} already; rename one of the two"
                )
            offers[name] = Offer(policy, name, plugin)

        others = [other for other in self._hooks.get_plugins() if other is not module]
        hook = self._hooks.subset_hook_caller("eplbd_register_policies", others)
        hook(register=register)
        if not offers:
            raise PolicyError(
                "registers no policy; define eplbd_register_policies(register), decorate it with "
                "@eplbd.hookimpl and call register(YourPolicy) in it"
            )

    def _unknown(self, name: str, wanted: str) -> str:
        known = ", ".join(sorted(self.offers))
        alias = f" (vllm-ascend's number for `{wanted}`)" if wanted != name else ""
        text = f"unknown policy `{name}`{alias}{near(wanted, self.offers)}; on offer: {known}"
        if self._alone:
            text += "; no plugin is enabled"
        for broken in self.broken:
            text += f"\nplugin {broken.plugin} cannot be loaded: {broken.error}"
        return text


def _import(module: str) -> ModuleType:
    if not module.endswith(".py"):
        return importlib.import_module(module)
    path = Path(module).absolute()
    # Prefixed: a file called random.py must not become everybody's `random`.
    spec = importlib.util.spec_from_file_location(f"eplbd_plugin_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"no such file: {path}")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses and msgspec look their module up
    spec.loader.exec_module(loaded)
    return loaded


def name_of(policy: type[Policy], plugin: Plugin) -> str:
    """The policy's name, once the class is known to keep the contract's form.

    Raises PolicyError: a sentence that says how to mend it.
    """
    if not isinstance(policy, type):
        raise PolicyError(f"register() takes a class, got {policy!r}")
    called = policy.__qualname__
    name: object = getattr(policy, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PolicyError(
            f"class {called}: name is {name!r}; expected lower case letters, digits and dashes"
        )
    written_for: object = getattr(policy, "eplbd_api", None)
    if written_for is None:
        raise PolicyError(f"class {called} does not say its API version; add `eplbd_api = {API}`")
    if written_for != API:
        release = plugin.distribution if plugin.distribution != "-" else plugin.name
        raise PolicyError(
            f"policy `{name}` was written for policy API {written_for}, this eplbd offers {API}: "
            f"install a release of {release} for API {API}, or an eplbd that offers {written_for}"
        )
    if not callable(getattr(policy, "propose", None)):
        raise PolicyError(f"class {called} has no method propose(heat, topology, current, budget)")
    options: object = getattr(policy, "Options", None)
    if options is not None and not (
        isinstance(options, type) and issubclass(options, msgspec.Struct)
    ):
        raise PolicyError(f"class {called}: Options must be a msgspec.Struct")
    _check_needs(name, policy)
    return name


def needs_of(policy: type[Policy]) -> frozenset[str]:
    """What the policy says that it needs of an engine; names out of `hookspecs.CAPABILITIES`."""
    return frozenset(getattr(policy, "needs", ()))


def _check_needs(name: str, policy: type[Policy]) -> None:
    needs: object = getattr(policy, "needs", frozenset())
    if not isinstance(needs, frozenset | set):
        raise PolicyError(
            f"policy `{name}`: needs is {needs!r}; expected a set of names, such as "
            'frozenset({"shares"})'
        )
    for need in sorted(map(str, needs - CAPABILITIES.keys())):
        raise PolicyError(
            f"policy `{name}` needs `{need}`, which this eplbd does not know"
            f"{near(need, CAPABILITIES)}; it knows {', '.join(CAPABILITIES)}: upgrade eplbd if the "
            "name is right"
        )


def _sentence(error: BaseException) -> str:
    text = str(error).partition("\n")[0]
    return text if isinstance(error, PolicyError) else f"{type(error).__name__}: {text}"
