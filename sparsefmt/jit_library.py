"""What numba's compiler makes of a function for each use of it. It would make all for the most expensive one.

A function that jitted code alone calls becomes a piece: LLVM code, which is linked into its callers and compiled there.
numba would optimise it by itself first, and make machine code of it that nobody calls.
"""

from __future__ import annotations

from enum import IntEnum
from types import CodeType
from typing import Any

from llvmlite import binding
from numba.core import typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, CompileResult, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager


class Use(IntEnum):
    """Who calls a function: other jitted code, native code by its address, or Python. Each includes those before."""

    PIECE, ADDRESS, PYTHON = range(3)


class Library(JITCodeLibrary):
    """The code of a function, which is called."""

    use = Use.PYTHON

    def _optimize_functions(self, module: Any) -> None:
        """Like numba's, which makes passes anew for each function, also for those that are only declared."""
        module.data_layout = self._codegen._data_layout
        passes, builder = self._codegen._function_pass_manager()
        for function in module.functions:
            if not function.is_declaration:
                passes.run(function, builder)


class Piece(Library):
    """The code of a function that is a part of its callers. It has no address."""

    use = Use.PIECE
    KIND = "piece"

    def _optimize_final_module(self) -> None:
        """Done in its callers."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def serialize_using_object_code(self) -> tuple[str, str, bytes]:
        return self.name, self.KIND, self._get_module_for_linking().as_bitcode()

    @classmethod
    def of(cls, codegen: Any, name: str, bitcode: bytes) -> Piece:
        """As it was when it was serialized."""
        self = cls(codegen, name)
        self._final_module = self._shared_module = binding.parse_bitcode(bitcode)
        self._finalized = True
        return self


_PASSES = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.DeadBranchPrune,
    untyped_passes.GenericRewrites,
    untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.InlineOverloads,
    typed_passes.NoPythonSupportedFeatureValidation,
    typed_passes.IRLegalization,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)
"""Those of numba's passes that make a difference to a function without functions within."""


class Compiler(CompilerBase):
    """numba's compiler for one function. `no_compile` among its flags says that it is a piece."""

    def define_pipelines(self) -> list[Any]:
        state = self.state
        made = Piece if state.flags.no_compile else Library
        state.library = made(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        if not state.flags.no_compile and state.flags.no_cpython_wrapper:
            state.library.use = Use.ADDRESS
        if any(isinstance(constant, CodeType) for constant in state.func_id.code.co_consts):
            return [DefaultPassBuilder.define_nopython_pipeline(state)]
        passes = PassManager("sparsefmt")
        for made_by in _PASSES:
            passes.add_pass(made_by, made_by.__name__)
        passes.finalize()
        return [passes]


def rebuilt(context: Any, payload: tuple[Any, ...]) -> CompileResult:
    """What numba's `CompileResult._reduce` gave, for any use."""
    (name, kind, data), fndesc, environment, signature, _, lifted, annotation, inits, environments = payload
    if kind != Piece.KIND:
        return CompileResult._rebuild(context, *payload)
    for init in inits:
        init()
    return CompileResult(
        target_context=context,
        typing_context=context.typing_context,
        library=Piece.of(context.codegen(), name, data),
        environment=environment,
        entry_point=object(),
        fndesc=fndesc,
        type_annotation=annotation,
        signature=signature,
        objectmode=False,
        lifted=lifted,
        typing_error=None,
        call_helper=None,
        metadata=None,
        reload_init=inits,
        referenced_envs=environments,
    )


def callable_in_jitted_code(code: CompileResult) -> CompileResult:
    """Code that was just compiled for jitted code, as numba's lowering finds it."""
    code = code._replace(entry_point=object())
    code.target_context.insert_user_function(code.entry_point, code.fndesc, [code.library])
    return code


def share_environments(code: CompileResult) -> None:
    """Tell machine code where the environments of its pieces are."""
    for environment in code._find_referenced_environments():
        code.codegen.set_env(environment.env_name, environment)
