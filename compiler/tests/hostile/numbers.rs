//! Numbers that overflow, do not match, or ask for more than any memory.

use onnx_protobuf::{ModelProto, NodeProto, TensorProto};

use crate::protos::{floats, inner, int, ints, model, node, text, value, with};
use crate::{refused, taken};

fn of(nodes: Vec<NodeProto>, initializer: Vec<TensorProto>) -> ModelProto {
    model(&[8, 4], nodes, initializer, &["y"])
}

fn add(w: TensorProto) -> ModelProto {
    of(vec![node("Add", &["x", "w"], &["y"])], vec![w])
}

#[test]
fn extents_of_tensors() {
    for (what, dims, words) in [
        ("negative", vec![-4], "extent -4 is negative"),
        ("the smallest", vec![i64::MIN], "is negative"),
        ("large", vec![1 << 40], "is too large"),
        ("product beyond 64 bits", vec![1 << 32, 1 << 32, 1 << 32], "is too large"),
        ("product that wraps to 4", vec![1 << 62, 4, 1 << 62, 4, 4], "is too large"),
    ] {
        refused(what, &add(floats("w", &dims, &[1.0; 4])), words);
        refused(what, &add(ints("w", &dims, &[1; 4])), words);
    }
    refused("nothing of much", &add(floats("w", &[0, i64::MAX, i64::MAX], &[])), "w");
    refused("many", &add(floats("w", &[1; 100_000], &[1.0])), "100000 dimensions");
}

#[test]
fn data_that_does_not_match_the_shape() {
    let raw = |bytes: usize, t: TensorProto| TensorProto { raw_data: vec![0; bytes], ..t };
    for (what, t, words) in [
        ("too few numbers", ints("w", &[4], &[1, 2]), "2 values for 4 elements"),
        ("too many numbers", ints("w", &[1], &[1, 2]), "2 values for 1 elements"),
        ("none", ints("w", &[4], &[]), "0 values for 4 elements"),
        ("too few bytes", raw(31, ints("w", &[4], &[])), "31 bytes of data for 4 elements of 8 bytes"),
        ("too many bytes", raw(4096, ints("w", &[4], &[])), "4096 bytes of data for 4 elements"),
        ("another type's", TensorProto { data_type: 6, ..ints("w", &[4], &[1; 4]) }, "0 values for 4 elements"),
        ("a type there is not", TensorProto { data_type: 77, ..ints("w", &[4], &[1; 4]) }, "type 77"),
        ("no type", TensorProto { data_type: 0, ..ints("w", &[4], &[1; 4]) }, "undefined"),
    ] {
        refused(what, &add(t), words);
    }
}

#[test]
fn extents_of_inputs() {
    let with_input = |code: i32, dims: &[i64]| {
        let mut m = of(vec![node("Relu", &["x"], &["y"])], vec![]);
        m.graph.mut_or_insert_default().input = vec![value("x", code, Some(dims))];
        m
    };
    refused("large", &with_input(1, &[8, 1 << 40]), "empty or too large");
    refused("beyond 64 bits", &with_input(1, &[8, 1 << 62, 1 << 62]), "empty or too large");
    refused("many", &with_input(1, &[1; 100_000]), "100000 dimensions");
    refused("a type there is not", &with_input(77, &[8, 4]), "type 77");
    refused("strings", &with_input(8, &[8, 4]), "string");
    refused("a scalar", &with_input(1, &[]), "first extent is missing");
}

/// Each node is small in the file, and each result by itself within the limit of a constant.
#[test]
fn constants_together_are_bounded() {
    let shape = ints("s", &[1], &[1 << 25]);
    let many = (0..64).flat_map(|i| {
        let (c, s) = (format!("c{i}"), format!("s{i}"));
        [node("ConstantOfShape", &["s"], &[&c]), node("ReduceSum", &[&c], &[&s])]
    });
    let sums: Vec<String> = (0..64).map(|i| format!("s{i}")).collect();
    let all = node("Sum", &sums.iter().map(String::as_str).collect::<Vec<_>>(), &["z"]);
    let nodes = many.chain([all, node("Add", &["x", "z"], &["y"])]).collect();
    refused("zeros", &of(nodes, vec![shape]), "constants of the model are too large");
}

#[test]
fn constants_take_bounded_work() {
    let shape = || ints("s", &[2], &[1 << 12, 1 << 12]);
    let nodes = vec![
        node("ConstantOfShape", &["s"], &["c"]),
        node("MatMul", &["c", "c"], &["d"]),
        node("ReduceSum", &["d"], &["z"]),
        node("Add", &["x", "z"], &["y"]),
    ];
    refused("a product", &of(nodes, vec![shape()]), "constants of the model are too large");
    let image = ints("s", &[4], &[1, 1, 1 << 11, 1 << 11]);
    let pool = with(
        node("MaxPool", &["c"], &["d"]),
        vec![onnx_protobuf::AttributeProto {
            name: "kernel_shape".into(),
            ints: vec![1000, 1000],
            type_: onnx_protobuf::attribute_proto::AttributeType::INTS.into(),
            ..Default::default()
        }],
    );
    let nodes = vec![
        node("ConstantOfShape", &["s"], &["c"]),
        pool,
        node("ReduceSum", &["d"], &["z"]),
        node("Add", &["x", "z"], &["y"]),
    ];
    refused("windows", &of(nodes, vec![image]), "constants of the model are too large");
}

/// What a file's few bytes would make a conversion write down: indices, flags, counts.
#[test]
fn tables_are_bounded() {
    let of_sum = |op: NodeProto, more: Vec<TensorProto>, before: Vec<NodeProto>| {
        let behind = [
            with(node("Cast", &["t"], &["real"]), vec![int("to", 1)]),
            with(node("ReduceSum", &["real"], &["sum"]), vec![int("keepdims", 0)]),
            node("Add", &["x", "sum"], &["y"]),
        ];
        of(before.into_iter().chain([op]).chain(behind).collect(), more)
    };
    let large = "too large";
    // One row of sixteen million elements, taken as often.
    let rows = [ints("s", &[2], &[1, 1 << 24]), ints("i", &[1], &[1 << 24])];
    let zeros = [node("ConstantOfShape", &["s"], &["table"]), node("ConstantOfShape", &["i"], &["zeros"])];
    let known = [with(node("Cast", &["zeros"], &["index"]), vec![int("to", 7)])];
    let gather = node("Gather", &["table", "index"], &["t"]);
    let before = || zeros.iter().cloned().chain(known.clone()).collect();
    refused("rows", &of_sum(gather, rows.to_vec(), before()), large);
    // No element, and a million rows and columns.
    let none = ints("s", &[3], &[0, 1 << 20, 1 << 20]);
    let zeros = vec![node("ConstantOfShape", &["s"], &["none"])];
    refused("a triangle", &of_sum(node("Trilu", &["none"], &["t"]), vec![none], zeros), large);
    // Values that are never in memory, of 2^34 elements.
    let wide = || vec![node("Expand", &["one", "s"], &["wide"])];
    let shapes = |dims: &[i64]| vec![ints("s", &[dims.len() as i64], dims)];
    for (what, op, dims, more) in [
        ("a triangle of data", node("Trilu", &["wide"], &["t"]), vec![1 << 17, 1 << 17], vec![]),
        ("a diagonal", node("EyeLike", &["wide"], &["t"]), vec![1 << 17, 1 << 17], vec![]),
        ("the largest", node("ArgMax", &["wide"], &["t"]), vec![1 << 34, 1], vec![]),
        (
            "backwards",
            node("Slice", &["wide", "from", "to", "axes", "step"], &["t"]),
            vec![1 << 34],
            vec![
                ints("from", &[1], &[-1]),
                ints("to", &[1], &[i64::MIN]),
                ints("axes", &[1], &[0]),
                ints("step", &[1], &[-1]),
            ],
        ),
        (
            "reflections",
            with(node("Pad", &["wide", "pads"], &["t"]), vec![text("mode", "reflect")]),
            vec![1 << 34],
            vec![ints("pads", &[2], &[1, 1])],
        ),
        (
            "reversed",
            with(node("ReverseSequence", &["wide", "n"], &["t"]), vec![int("time_axis", 0), int("batch_axis", 1)]),
            vec![1 << 34, 1],
            vec![ints("n", &[1], &[1 << 34])],
        ),
        (
            "written",
            node("ScatterND", &["wide", "at", "new"], &["t"]),
            vec![1 << 34],
            vec![ints("at", &[1, 1], &[0]), floats("new", &[1], &[1.0])],
        ),
        (
            "a border",
            node("Pad", &["wide", "pads", "one_float"], &["t"]),
            vec![1 << 17, 1 << 17],
            vec![ints("pads", &[4], &[1; 4]), floats("one_float", &[], &[1.0])],
        ),
    ] {
        let first = with(node("ReduceMax", &["x"], &["one"]), vec![int("keepdims", 0)]);
        let before = [first].into_iter().chain(wide()).collect();
        refused(what, &of_sum(op, [shapes(&dims), more].concat(), before), large);
    }
}

#[test]
fn one_constant_used_often_is_bounded() {
    let range = vec![
        ints("zero", &[], &[0]),
        ints("n", &[], &[1 << 22]),
        ints("one", &[], &[1]),
        ints("s", &[2], &[8, 1 << 22]),
    ];
    let mut nodes = vec![node("Range", &["zero", "n", "one"], &["r"]), node("Expand", &["x1", "s"], &["h0"])];
    for i in 0..400 {
        nodes.push(node("Add", &[&format!("h{i}"), "r"], &[&format!("h{}", i + 1)]));
    }
    nodes.push(with(node("ReduceMax", &["h400"], &["y"]), vec![int("keepdims", 0)]));
    let mut m = of(nodes, range);
    m.graph.mut_or_insert_default().input = vec![value("x1", 1, Some(&[8, 1]))];
    refused("a range", &m, "constants of the model are too large");
}

#[test]
fn sizes_that_grow_step_by_step() {
    // Each step is within what one operator may ask for.
    let mut nodes = vec![];
    for i in 0..6 {
        let from = if i == 0 { "x".to_string() } else { format!("h{i}") };
        nodes.push(node("Tile", &[&from, "r"], &[&format!("h{}", i + 1)]));
    }
    nodes.push(with(node("ReduceMax", &["h6"], &["y"]), vec![int("keepdims", 0)]));
    refused("tiles", &of(nodes, vec![ints("r", &[2], &[1 << 8, 1 << 8])]), "too large");
    let outer = vec![
        node("Reshape", &["x", "col"], &["a"]),
        node("Reshape", &["x", "row"], &["b"]),
        node("MatMul", &["a", "b"], &["c"]),
        node("Reshape", &["c", "col"], &["d"]),
        node("Reshape", &["c", "row"], &["e"]),
        node("MatMul", &["d", "e"], &["f"]),
        node("Reshape", &["f", "col"], &["g"]),
        node("Reshape", &["f", "row"], &["h"]),
        node("MatMul", &["g", "h"], &["i"]),
        node("ReduceMax", &["i"], &["y"]),
    ];
    let shapes = vec![ints("col", &[2], &[-1, 1]), ints("row", &[2], &[1, -1])];
    let mut m = of(outer, shapes);
    m.graph.mut_or_insert_default().input = vec![value("x", 1, Some(&[8, 1 << 10]))];
    refused("products", &m, "too large");
}

/// Found by the search in fuzz/.
#[test]
fn axes_named_twice() {
    let backwards = vec![node("Slice", &["x", "from", "to", "axes", "steps"], &["y"])];
    let initializers = vec![
        ints("from", &[3], &[20, 10, 4]),
        ints("to", &[3], &[0, 0, 1]),
        ints("axes", &[3], &[0, 0, 1]),
        ints("steps", &[3], &[-1, -3, -2]),
    ];
    refused("a slice", &of(backwards, initializers), "repeat a dimension");
}

#[test]
fn numbers_of_operators() {
    for (what, nodes, words) in [
        ("a range of everything", vec![node("Range", &["zero", "large", "one"], &["r"])], "no usable length"),
        ("a range that does not move", vec![node("Range", &["zero", "large", "zero"], &["r"])], "no usable length"),
        ("a shape", vec![node("ConstantOfShape", &["large"], &["r"])], "too large"),
        ("depth", vec![node("OneHot", &["one", "large", "pair"], &["r"])], ""),
        ("copies", vec![node("Tile", &["x", "larges"], &["r"])], ""),
        ("an expansion", vec![node("Expand", &["x", "full"], &["r"])], "too large"),
        ("padding", vec![node("Pad", &["x", "pads"], &["r"])], "too large"),
    ] {
        let mut nodes = nodes;
        nodes.push(node("Add", &["x", "r"], &["y"]));
        let initializers = vec![
            ints("zero", &[], &[0]),
            ints("one", &[], &[1]),
            ints("large", &[], &[i64::MAX]),
            ints("larges", &[2], &[1 << 40, 1 << 40]),
            ints("full", &[3], &[1 << 40, 8, 4]),
            ints("pads", &[4], &[0, i64::MAX / 2, 0, i64::MAX / 2]),
            floats("pair", &[2], &[0.0, 1.0]),
        ];
        refused(what, &of(nodes, initializers), words);
    }
}

#[test]
fn nothing_at_all_is_no_panic() {
    let graph = inner(vec![], vec![], &[]);
    refused("an empty graph", &ModelProto { graph: Some(graph).into(), ..of(vec![], vec![]) }, "no outputs");
    let m = of(vec![node("Add", &["x", "w"], &["y"])], vec![floats("w", &[4], &[f32::NAN; 4])]);
    taken(&crate::protos::open(&m));
}
