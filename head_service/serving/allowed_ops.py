"""The operations a head may be made of. What is not named is refused: TensorFlow's operations include files, sockets and Python.

An allow-list, since lists of what is forbidden have been got round again and again (PrintV2 writes files, WholeFileReaderV2 and
RestoreV2 read them). Each group says why it is harmless.
"""

from typing import Final


def _ops(names: str) -> frozenset[str]:
    return frozenset(names.split())


COMPUTING: Final[dict[str, frozenset[str]]] = {
    "constants and what a caller sends": _ops(
        """
        Const Identity IdentityN NoOp Placeholder PlaceholderWithDefault Snapshot StopGradient
        """
    ),
    "shapes, and moving elements about": _ops(
        """
        BroadcastArgs BroadcastTo Cast ConcatV2 EnsureShape ExpandDims Fill Gather GatherNd GatherV2 InvertPermutation
        MirrorPad OneHot OnesLike Pack Pad PadV2 Range Rank Reshape ReverseV2 Select SelectV2 Shape ShapeN Size Slice
        Split SplitV Squeeze StridedSlice Tile Transpose Unpack Where ZerosLike
        """
    ),
    "arithmetic, element by element": _ops(
        """
        Abs Add AddN AddV2 Ceil ClipByValue Cos Div DivNoNan Erf Erfc Exp Expm1 Floor FloorDiv FloorMod Inv IsFinite
        IsInf IsNan LinSpace Log Log1p Maximum Minimum Mul MulNoNan Neg Pow RealDiv Reciprocal Rint Round Rsqrt Sign
        Sin Sqrt Square SquaredDifference Sub Tanh Xdivy Xlogy
        """
    ),
    "comparison and logic": _ops(
        """
        Equal Greater GreaterEqual Less LessEqual LogicalAnd LogicalNot LogicalOr NotEqual
        """
    ),
    "reductions": _ops(
        """
        All Any ArgMax ArgMin Cumsum Max Mean Min Prod SegmentMax SegmentMean SegmentSum Sum TopKV2 UnsortedSegmentSum
        """
    ),
    "layers": _ops(
        """
        AvgPool BatchMatMul BatchMatMulV2 BatchMatMulV3 BiasAdd Conv2D DepthwiseConv2dNative Einsum Elu
        FusedBatchNormV3 L2Loss LeakyRelu LogSoftmax MatMul MaxPool Relu Relu6 Selu Sigmoid Softmax Softplus Softsign
        """
    ),
    "weights, which only loading writes": _ops(
        """
        ReadVariableOp ResourceGather VarHandleOp VarIsInitializedOp
        """
    ),
    "calls of functions, which are looked at too": _ops("PartitionedCall StatefulPartitionedCall"),
}

LOADING: Final[dict[str, frozenset[str]]] = {
    "weights, from the version's files: only loading and initialising may": _ops("AssignVariableOp RestoreV2"),
}

NEVER_RUN: Final[dict[str, frozenset[str]]] = {
    "every SavedModel carries the graph that would save it again; nothing that is run may reach it": _ops(
        """
        DisableCopyOnRead MergeV2Checkpoints SaveV2 ShardedFilename StaticRegexFullMatch StringJoin
        """
    ),
}


COMPUTING_OPS: Final = frozenset[str]().union(*COMPUTING.values())
LOADING_OPS: Final = COMPUTING_OPS.union(*LOADING.values())
ALL_OPS: Final = LOADING_OPS.union(*NEVER_RUN.values())

STEADY: Final[dict[str, frozenset[str]]] = {
    "what other people's models read their inputs and weights with; it takes as long as there is much of it": _ops(
        """
        ParseExample ParseExampleV2 Variable VariableV2
        """
    ),
}

STEADY_OPS: Final = COMPUTING_OPS.union(*STEADY.values())
"""Of a graph of these alone, how long it runs follows from the size of its inputs."""
