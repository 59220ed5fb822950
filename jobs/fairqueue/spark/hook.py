"""The place in Spark where the fair queue sits: every task set passes here before it waits for slots.

Spark's ``TaskSchedulerImpl`` hands each new task set to its private ``schedulableBuilder``, and in FIFO mode
sorts the waiting ones at every offer of slots by ``TaskSetManager.priority``, a mutable number. So a builder
of our own, put in by reflection, sees each task set with the properties of its job and can order it.

The builder runs inside Spark's scheduler lock, in the thread of its DAG scheduler: an exception there stops
the whole application. Python may raise, and the way to it may break. The builder is therefore put together
inside the JVM from method handles: Spark's own builder goes first and adds the task set, then Python is
called, and whatever that throws is caught and counted. Whatever happens to Python, no task set is lost: one
that Python cannot order waits behind all others, and one that Python is not told of keeps Spark's own number.
What remains: while Python does not answer at all (a C extension that keeps the GIL), Spark's scheduler waits
with it.

Priorities are changed only under the scheduler's lock, for a sort that sees them change fails. A call back
has that lock already; :meth:`SchedulerHook.write_locked` takes it through a synchronised map whose mutex is
the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from jobs.fairqueue.errors import AlreadyInstalledError, FairQueueParameterError, HooksMissingError
from jobs.fairqueue.labels import LIMIT

if TYPE_CHECKING:
    from pyspark import SparkContext

_FIELD = "schedulableBuilder"
_PRIORITY_SETTER = "priority_$eq"
_BUILDER = "org.apache.spark.scheduler.SchedulableBuilder"
_FIFO_BUILDER = "org.apache.spark.scheduler.FIFOSchedulableBuilder"
_MANAGER = "org.apache.spark.scheduler.TaskSetManager"
_PING_MS = 2000

LAST_PRIORITY = LIMIT
"""Behind all labels, and not so far from any that their difference overflows."""


class SchedulerHook:
    """Calls Python for each task set that Spark's scheduler is given.

    Parameters
    ----------
    context
        Context of the driver.
    on_task_set
        Called with (TaskSetManager, Properties), under Spark's scheduler lock.

    Raises
    ------
    AlreadyInstalledError
        Spark's builder has been replaced already.
    FairQueueParameterError
        Spark schedules in FAIR mode, in which priorities mean nothing.
    HooksMissingError
        This Spark is built otherwise.
    """

    def __init__(self, context: SparkContext, on_task_set: Callable[[Any, Any], None]) -> None:
        from py4j.protocol import Py4JError

        try:
            self._gateway: Any = context._gateway
            self._scheduler: Any = context._jsc.sc().taskScheduler()
            self._field = _builder_field(self._scheduler)
            self._original = self._field.get(self._scheduler)
            self._refuse_other_builders(context)
            self._handles = _Handles(self._gateway)
            self._lost = self._handles.counter()
            self._python_builder = _PythonBuilder(self._original, on_task_set)
            self._builder = self._handles.guarded_builder(self._original, self._python_builder, self._lost)
            self._ping = self._handles.ping(self._builder)
            self._priority_setter = self._handles.priority_setter()
            self.write_locked([])  # the lock can be taken
            _start_callback_server(self._gateway)
        except (Py4JError, TypeError, AttributeError) as error:
            raise HooksMissingError(
                f"this Spark ({context.version}) lacks what the fair queue hooks into "
                f"({_first_line(error)}); Spark's own FAIR mode with a pool per user remains: "
                "spark.scheduler.mode=FAIR and fairqueue.use_pool(spark, user)"
            ) from error

    def _refuse_other_builders(self, context: SparkContext) -> None:
        name = self._original.getClass().getName()
        if name != _FIFO_BUILDER:
            mode = context.getConf().get("spark.scheduler.mode", "FIFO")
            if mode != "FIFO":
                raise FairQueueParameterError(f"'spark.scheduler.mode' must be FIFO (got {mode!r})")
            raise AlreadyInstalledError(f"a fair queue is installed in this application already ({name})")

    def install(self) -> None:
        """Let task sets pass here from now on."""
        self._field.set(self._scheduler, self._builder)

    def restore(self) -> None:
        """Give Spark its own builder back."""
        self._field.set(self._scheduler, self._original)

    def lost_calls(self) -> int:
        """Number of task sets of which Python was not told, because the call failed."""
        return int(self._lost.get(0))

    def is_alive(self) -> bool:
        """Whether the JVM reaches Python; the call goes the way that a task set's goes."""
        before = self.lost_calls()
        # In a thread of its own: one that Python has called would call back through that very connection.
        thread = self._gateway.jvm.java.lang.Thread(self._ping)
        thread.setDaemon(True)
        thread.start()
        thread.join(_PING_MS)
        return not thread.isAlive() and self.lost_calls() == before

    def write_locked(self, priorities: Iterable[tuple[Any, int]]) -> None:
        """Set the priorities of waiting task sets, all at once between two decisions of the scheduler."""
        changes = self._gateway.jvm.java.util.HashMap()
        for manager, priority in priorities:
            changes.put(manager, priority)
        self._handles.synchronized_map(changes, self._scheduler).forEach(self._priority_setter)


def write(manager: Any, priority: int) -> None:
    """Set the priority of one task set; only where the scheduler's lock is held."""
    getattr(manager, _PRIORITY_SETTER)(priority)


class _PythonBuilder:
    """The Python end of the builder; the task set has been added when it is called."""

    def __init__(self, original: Any, on_task_set: Callable[[Any, Any], None]) -> None:
        self._original = original
        self._on_task_set = on_task_set

    def rootPool(self) -> Any:  # noqa: N802  (Spark's names)
        return self._original.rootPool()

    def buildPools(self) -> None:  # noqa: N802
        """Spark's builder has done it."""

    def addTaskSetManager(self, manager: Any, properties: Any) -> None:  # noqa: N802
        self._on_task_set(manager, properties)

    class Java:
        implements = (_BUILDER,)


class _Handles:
    """Java objects made of method handles (``java.lang.invoke``)."""

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway
        self._jvm = gateway.jvm
        self._methods = gateway.jvm.java.lang.invoke.MethodHandles
        self._lookup = self._methods.lookup()
        self._void = gateway.jvm.java.lang.Void.TYPE
        self._int = gateway.jvm.java.lang.Integer.TYPE
        self._object, self._method, self._throwable = map(
            self._class, ("java.lang.Object", "java.lang.reflect.Method", "java.lang.Throwable")
        )

    def counter(self) -> Any:
        """An array of one atomic number; Py4J would turn a Java number into a Python one."""
        return self._jvm.java.util.concurrent.atomic.AtomicIntegerArray(1)

    def guarded_builder(self, original: Any, python: Any, failures: Any) -> Any:
        """Builder that calls ``original``, then ``python``; what the latter throws is counted."""
        guarded = self._methods.catchException(
            self._invoke_on(python), self._throwable, self._count_and_return_null(failures)
        )
        handler = self._methods.foldArguments(guarded, self._as_void(self._invoke_on(original)))
        interface = self._class(_BUILDER)
        return self._jvm.java.lang.reflect.Proxy.newProxyInstance(
            interface.getClassLoader(),
            self._classes(interface),
            self._interface("java.lang.reflect.InvocationHandler", handler),
        )

    def ping(self, builder: Any) -> Any:
        """``Runnable`` that calls a builder where it does nothing."""
        kind = self._jvm.java.lang.invoke.MethodType.methodType(self._void)
        call = self._lookup.findVirtual(self._class(_BUILDER), "buildPools", kind)
        bound = self._methods.insertArguments(call, 0, self._objects(builder))
        return self._interface("java.lang.Runnable", bound)

    def priority_setter(self) -> Any:
        """``BiConsumer`` that takes a task set and its new priority."""
        kind = self._jvm.java.lang.invoke.MethodType.methodType(self._void, self._int)
        setter = self._lookup.findVirtual(self._class(_MANAGER), _PRIORITY_SETTER, kind)
        of_objects = self._jvm.java.lang.invoke.MethodType.methodType(
            self._void, self._object, self._classes(self._object)
        )
        return self._interface("java.util.function.BiConsumer", setter.asType(of_objects))

    def synchronized_map(self, entries: Any, mutex: Any) -> Any:
        """View of a map that holds the monitor of ``mutex`` while it works."""
        constructor = self._class("java.util.Collections$SynchronizedMap").getDeclaredConstructor(
            self._classes(self._class("java.util.Map"), self._object)
        )
        constructor.setAccessible(True)
        return constructor.newInstance(self._objects(entries, mutex))

    def _invoke_on(self, target: Any) -> Any:
        """Handle ``(proxy, method, arguments) -> method.invoke(target, arguments)``."""
        kind = self._jvm.java.lang.invoke.MethodType.methodType(
            self._object, self._object, self._classes(self._class("[Ljava.lang.Object;"))
        )
        invoke = self._lookup.findVirtual(self._method, "invoke", kind)
        bound = self._methods.insertArguments(invoke, 1, self._objects(target))
        return self._methods.dropArguments(bound, 0, self._classes(self._object))

    def _count_and_return_null(self, counter: Any) -> Any:
        """Handle ``(throwable) -> null`` that adds one to the counter."""
        kind = self._jvm.java.lang.invoke.MethodType.methodType(self._int, self._int)
        add = self._lookup.findVirtual(counter.getClass(), "incrementAndGet", kind)
        count = self._as_void(self._methods.insertArguments(add, 0, self._objects(counter, 0)))
        null = self._methods.filterReturnValue(count, self._methods.constant(self._object, None))
        return self._methods.dropArguments(null, 0, self._classes(self._throwable))

    def _as_void(self, handle: Any) -> Any:
        return handle.asType(handle.type().changeReturnType(self._void))

    def _interface(self, name: str, handle: Any) -> Any:
        proxies = self._jvm.java.lang.invoke.MethodHandleProxies
        return proxies.asInterfaceInstance(self._class(name), handle)

    def _class(self, name: str) -> Any:
        return self._jvm.py4j.reflection.ReflectionUtil.classForName(name)

    def _classes(self, *classes: Any) -> Any:
        array = self._gateway.new_array(self._jvm.java.lang.Class, len(classes))
        for position, item in enumerate(classes):
            array[position] = item
        return array

    def _objects(self, *items: Any) -> Any:
        values = self._jvm.java.util.ArrayList()  # an array of Py4J takes no Python object
        for item in items:
            values.add(item)
        return values.toArray()


def _builder_field(scheduler: Any) -> Any:
    field = scheduler.getClass().getDeclaredField(_FIELD)
    field.setAccessible(True)
    return field


def _start_callback_server(gateway: Any) -> None:
    from pyspark.java_gateway import ensure_callback_server_started

    ensure_callback_server_started(gateway)  # type: ignore[no-untyped-call]


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "java_exception", None)
    text = cause.toString() if cause is not None else str(error)
    return text.strip().split("\n", 1)[0]
