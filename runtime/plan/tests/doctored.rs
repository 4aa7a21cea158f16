//! A plan that uses every kernel family is accepted; changed in any one place on which a device or a session relies, it
//! is refused for that reason, before anything touches memory.

use slrc_plan::Plan;
use slrc_plan::validate::{InvalidPlan, validate};
use slrc_plan::yaml;

const PLAN: &str = include_str!("every_family.yaml");

fn check(text: &str) -> Result<(), InvalidPlan> {
    validate(&yaml::from_str::<Plan>(text).expect("the text is a plan"))
}

/// One kernel's text, from its id to the end of it.
fn kernel(module: usize, id: &str) -> &'static str {
    let program = PLAN.split("  step:\n").nth(module).expect("a module");
    let (_, from) = program.split_once(&format!("    - id: {id}\n")).expect("a kernel");
    from.split("    - id: ").next().expect("text")
}

/// Refusals of the plan with `from` replaced in kernel `k<n>` of a module's step: `(what, with what, why)`.
fn refused_kernel(module: usize, id: &str, changes: &[(&str, &str, &str)]) {
    for (from, to, reason) in changes {
        let old = kernel(module, id);
        assert_eq!(old.matches(from).count(), 1, "{id}: {from}");
        refused(PLAN, old, &old.replace(from, to), reason);
    }
}

fn refused(text: &str, from: &str, to: &str, reason: &str) {
    assert_eq!(text.matches(from).count(), 1, "{from}");
    match check(&text.replace(from, to)) {
        Ok(()) => panic!("accepted, though {reason}:\n{to}"),
        Err(e) => assert!(e.to_string().contains(reason), "{e}\nexpected: {reason}\n{to}"),
    }
}

#[test]
fn the_plan_itself_holds() {
    check(PLAN).expect("a sound plan");
}

#[test]
fn attention() {
    refused_kernel(
        2,
        "k9",
        &[
            ("space: 2x2", "space: '2'", "rows and columns"),
            ("space: 2x2", "space: '0x2'", "an extent is 0"),
            ("space: 2x2", "space: 3x2", "leaves its buffer"),
            ("space: 2x2", "space: 1000000000000x1000000000000", "too large"),
            ("          - 1\n", "          - 0\n", "reduces the columns"),
            ("- name: p0\n          k: 3", "- name: 0p\n          k: 3", "cannot name a value"),
            ("- name: p0\n          k: 3", "- name: x0\n          k: 3", "defined twice"),
            ("- name: p0\n          k: 3", "- name: p1\n          k: 3", "before it is defined"),
            ("- name: p0\n          k: 3", "- name: p0\n          k: 0", "an extent is 0"),
            ("- name: p0\n          k: 3", "- name: p0\n          k: 4", "leaves its buffer"),
            ("a: m2/noise(3,1)", "a: m2/noise(3)", "does not have 2 dimensions"),
            ("x0 = const/0(0,0)", "x0 = const/0(0)", "every view needs 2 strides"),
            ("- value: v2", "- value: v7", "multiplied but not defined"),
            ("- value: v2", "- value: v1", "does not vary along columns"),
            ("to: m2/mixed(3,1)", "to: m2/mixed(3,0)", "names an element twice"),
            ("to: m2/mixed(3,1)", "to: m2/noise(3,1)", "is written while"),
            ("to: m2/mixed(3,1)", "to: m2/turned(3,1)", "is written while"),
            ("to: m2/mixed(3,1)", "to: m2/scale(3,1)", "leaves its buffer"),
            ("m2/scale(1,0) = v1", "m2/turned(1,1) = v1", "is stored along a reduced dimension"),
            ("m2/scale(1,0) = v1", "m2/scale(1,0) = p0", "is stored but not computed"),
            ("m2/scale(1,0) = v1", "w/conv(1,0) = v1", "isolation"),
            ("strip: 2", "strip: 0", "at a time"),
            ("strip: 2", "strip: 3", "at a time"),
            ("over: rows\n          width: 3", "over: rows\n          width: 0", "an extent is 0"),
        ],
    );
}

#[test]
fn convolutions() {
    refused_kernel(
        1,
        "k1",
        &[
            ("m1/copy(48,12,3,1)", "scalar/lr(0,0,0,0)", "not dense"),
            ("m1/copy(48,12,3,1)", "m1/copy(48,3,12,1)", "not dense"),
            ("m1/copy(48,12,3,1)", "m1/copy@1(48,12,3,1)", "leaves its buffer"),
            ("w/conv(27,9,3,1)", "w/conv(27,9,1,3)", "not dense"),
            ("m1/y(64,16,4,1)", "m1/y(64,16,4,0)", "not dense"),
            ("m1/y(64,16,4,1)", "m1/copy(64,16,4,1)", "leaves its buffer"),
            ("m1/y(64,16,4,1)", "m1/y(16,4,1)", "does not have 4 dimensions"),
            ("batch: 2", "batch: 0", "an extent is 0"),
            ("batch: 2", "batch: 3", "leaves its buffer"),
            ("out_channels: 4", "out_channels: 5", "leaves its buffer"),
            ("direction: forward", "direction: forward\n        algorithm: winograd", "multiples of 16"),
            ("groups: 1", "groups: 0", "do not divide"),
            ("groups: 1", "groups: 2", "do not divide"),
            ("strides: 1x1", "strides: '0x1'", "at least 1"),
            ("kernel: 3x3", "kernel: '3'", "two spatial dimensions"),
            ("pads: 1x1", "pads: 1x9999999999", "larger than"),
            ("output: 4x4", "output: 1000000000x1000000000", "too large"),
            ("y: m1/y(64,16,4,1)", "y: m1/y(64,16,4,1)\n        packed: w/conv(1)", "packs its weights"),
        ],
    );
    refused_kernel(
        1,
        "k6",
        &[
            ("packed: m1/packed(1)", "packed: m1/packed(0)", "not dense"),
            ("packed: m1/packed(1)", "packed: m1/packed@1(1)", "leaves its buffer"),
            ("\n        packed: m1/packed(1)", "", "packs its weights"),
            ("m1/dx(48,12,3,1)", "m1/dy(48,12,3,1)", "is written while"),
        ],
    );
    refused_kernel(
        1,
        "k7",
        &[
            ("partials(108,1)", "partials(0,1)", "not dense"),
            ("partials(108,1)", "partials(1,108)", "leaves its buffer"),
            ("count: 2", "count: 1", "in 1 groups"),
            ("count: 2", "count: 3", "in 3 groups"),
        ],
    );
}

#[test]
fn pooling() {
    refused_kernel(
        1,
        "k2",
        &[
            ("m1/y(64,16,4,1)", "m1/y(64,4,16,1)", "not dense"),
            ("m1/at(16,8,4,1)", "x1(16,8,4,1)", "is of f32, not u8 or i32"),
            ("m1/at(16,8,4,1)", "m1/at(16,8,2,1)", "not dense"),
            ("kernel: 2x2", "kernel: 17x16", "do not fit in a byte"),
            ("channels: 4", "channels: 5", "leaves its buffer"),
            ("input: 4x4", "input: 8x4", "leaves its buffer"),
            ("op: max-index", "op: select", "an index operand is for"),
        ],
    );
    refused_kernel(
        1,
        "k3",
        &[
            ("index: m1/at", "index: m1/y", "is of f32, not u8 or i32"),
            ("index: m1/at(16,8,4,1)", "index: m1/at(16,8,4,0)", "not dense"),
            ("small: x1(16,8,4,1)", "small: m1/at(16,8,4,1)", "is of u8, not f32"),
            ("op: select", "op: sum", "an index operand is for"),
        ],
    );
    refused_kernel(1, "k5", &[("large: m1/dy(64,16,4,1)", "large: m1/dy(0,16,4,1)", "not dense")]);
}

#[test]
fn products() {
    refused_kernel(
        2,
        "k0",
        &[
            ("a: x1(16,1)", "a: input/ids(0,0)", "is of i32, not f32"),
            ("b: w/fc(1,16)", "b: const/0(0,0)", "is of i32, not f32"),
            ("b: w/fc(1,16)", "b: w/fc(16,16)", "leaves its buffer"),
            ("b: w/fc(1,16)", "b: w/conv(1,16)", "isolation"),
            ("c: m2/z(3,1)", "c: m2/z(0,1)", "with an epilogue is dense"),
            ("c: m2/z(3,1)", "c: m2/z(2,1)", "with an epilogue is dense"),
            ("m: 2", "m: 0", "an extent is 0"),
            ("k: 16", "k: 4611686018427387904", "too large"),
            ("count: 2", "count: 17", "in 17 groups"),
            ("count: 2", "count: 3", "leaves its buffer"),
            ("batch: scalar", "batch: '1'", "is not split"),
            ("partials(6,3,1)", "partials(6,1,2)", "not dense"),
            ("partials: m2/z.partials(6,3,1)", "partials: m2/z(0,3,1)", "not dense"),
        ],
    );
}

#[test]
fn epilogues() {
    refused_kernel(
        2,
        "k0",
        &[
            ("space: 2x3", "space: 3x2", "does not fit a product of 2 rows of 3"),
            ("space: 2x3", "space: 1x3", "does not fit a product of 2 rows of 3"),
            ("space: 2x3", "space: 2x3\n          reduce:\n          - 1", "reduces all dimensions but the last"),
            ("space: 2x3", "space: 2x3\n          reduce:\n          - 0", "needs a reduction"),
            ("x0 = m2/z(3,1)", "x0 = m2/z(1,2)", "is not the product"),
            ("x0 = m2/z(3,1)", "x0 = m2/z@1(3,1)", "is not the product"),
            ("x0 = m2/z(3,1)", "x0 = m2/p(3,1)", "not live"),
            ("x0 = m2/z(3,1)", "x0 = m2/z(3)", "needs 2 strides"),
            ("- m2/z(3,1) = v0", "- m2/z(1,2) = v0", "is not the product"),
            ("- m2/z(3,1) = v0", "- m2/z(3,1) = x0", "stored but not computed"),
            ("- m2/z(3,1) = v0", "- m2/sum(1,0) = v0", "names an element twice"),
            ("- m2/z(3,1) = v0", "- x1(16,1) = v0", "is written while"),
            ("- m2/z(3,1) = v0", "- m2/z.partials(3,1) = v0", "is written while"),
            ("x1 = scalar/lr(0,0)", "x1 = scalar/lr(1,0)", "leaves its buffer"),
            ("x1 = scalar/lr(0,0)", "x1 = w/conv(0,0)", "isolation"),
            ("mul x0 x1", "reduce-sum x0", "reduces in a map"),
        ],
    );
    refused_kernel(
        1,
        "k6",
        &[
            ("space: 2x16x3", "space: 1x16x3", "does not fit a product of 32 rows of 3"),
            ("m1/dx(48,3,1) = v0", "m1/dx(48,1,16) = v0", "is not the product"),
            ("out_channels: 4\n        groups: 1", "out_channels: 6\n        groups: 3", "in groups has no epilogue"),
        ],
    );
    // A reduction of columns, of a plan that says nothing of groups of rows.
    let old = kernel(2, "k0");
    let reduced = old.replace("space: 2x3", "space: 2x3\n          reduce:\n          - 0");
    refused(PLAN, old, &reduced.replace("mul x0 x1", "reduce-sum x0"), "reduces in groups of rows");
}

#[test]
fn prologues() {
    let old = kernel(1, "k1");
    let own = "\n        x_prologue:\n          loads:\n          - x0 = m1/copy(48,12,3,1)\n          - x1 = scalar/lr(0,0,0,0)\n          \
               body:\n          - v0 = mul x0 x1\n          value: v0";
    let with = |prologue: &str| old.replace("x: m1/copy(48,12,3,1)", &format!("x: m1/copy(48,12,3,1){prologue}"));
    check(&PLAN.replace(old, &with(own))).expect("a sound plan");
    for (from, to, reason) in [
        ("x0 = m1/copy(48,12,3,1)", "x0 = m1/copy(48,12,3,0)", "does not read m1/copy(48,12,3,1)"),
        ("x0 = m1/copy(48,12,3,1)", "x0 = m1/copy(48,12,3)", "needs 4 strides"),
        ("x1 = scalar/lr(0,0,0,0)", "x1 = scalar/lr(0,0,0,1)", "leaves its buffer"),
        ("x1 = scalar/lr(0,0,0,0)", "x1 = m1/y(64,16,4,1)", "is written while"),
        ("x1 = scalar/lr(0,0,0,0)", "x1 = m1/dx(48,12,3,1)", "not live"),
        ("x1 = scalar/lr(0,0,0,0)", "x1 = x1(0,0,0,1)", "is read before it is written"),
        ("value: v0", "value: x0", "is operand x but not computed"),
        ("mul x0 x1", "reduce-sum x0", "reduces in a map"),
        ("mul x0 x1", "mul x0 v1", "before it is defined"),
        ("x_prologue", "y_prologue", "for what a convolution in one group reads"),
    ] {
        refused(PLAN, old, &with(&own.replace(from, to)), reason);
    }
}

#[test]
fn sums_of_operands() {
    let plan = PLAN.replace("bytes: 24, live: 2..2}", "bytes: 24, live: 0..2}");
    let plan = plan.replace("bytes: 12, live: 2..2}", "bytes: 12, live: 0..2}");
    let old = kernel(2, "k0");
    let own = "        b_sums:\n          space: 16x3\n          reduce:\n          - 0\n          loads:\n          - x0 = w/fc(3,1)\n          \
               - x1 = scalar/lr(0,0)\n          body:\n          - v0 = reduce-sum x0\n          - v1 = mul v0 x1\n          \
               stores:\n          - m2/g(0,1) = v1\n          split:\n            count: 2\n            \
               partials: m2/g.partials(3,3,1)\n";
    let with = |sums: &str| format!("{}{sums}", old.replace("b: w/fc(1,16)", "b: w/fc(3,1)"));
    check(&plan.replace(old, &with(own))).expect("a sound plan");
    for (from, to, reason) in [
        ("space: 16x3", "space: 48x1", "do not fit an operand of 16 rows of 3"),
        ("- 0\n          loads", "- 1\n          loads", "do not fit an operand of 16 rows of 3"),
        ("x0 = w/fc(3,1)", "x0 = w/fc(1,16)", "is not a sum of the operand"),
        ("x0 = w/fc(3,1)", "x0 = w/fc(3)", "needs 2 strides"),
        ("reduce-sum x0", "reduce-max x0", "is not a sum of the operand"),
        ("reduce-sum x0", "exp x0", "needs a reduction"),
        ("mul v0 x1", "mul v0 x0", "second pass"),
        ("x1 = scalar/lr(0,0)", "x1 = scalar/lr(0,1)", "leaves its buffer"),
        ("x1 = scalar/lr(0,0)", "x1 = m2/z(0,1)", "is written while"),
        ("m2/g(0,1) = v1", "m2/z(0,1) = v1", "is written while"),
        ("m2/g(0,1) = v1", "m2/g(0,0) = v1", "names an element twice"),
        ("m2/g(0,1) = v1", "w/fc(0,1) = v1", "is written while"),
        ("count: 2", "count: 3", "in the ranges of its product"),
        ("partials(3,3,1)", "partials(1,3,1)", "not dense"),
        ("m2/g.partials(3,3,1)", "m2/z.partials(3,3,1)", "is written while"),
    ] {
        assert_eq!(own.matches(from).count(), 1, "{from}");
        refused(&plan, old, &with(&own.replace(from, to)), reason);
    }
    let columns = format!("{old}{own}");
    refused(&plan, old, &columns.replace("x0 = w/fc(3,1)", "x0 = w/fc(1,16)"), "a single matrix that lies densely");
}

#[test]
fn regions() {
    refused_kernel(
        1,
        "k4",
        &[
            ("e1(1) = v0", "e1(0) = v0", "names an element twice"),
            ("e1(1) = v0", "m1/mask(1) = v0", "is no flag"),
            ("e1(1) = v0", "labels(0) = v0", "is of i32, not f32 or u8"),
            ("e1(1) = v0", "e1(1) = x0", "stored but not computed"),
            ("e1(1) = v0", "e1(1) = v7", "stored but not defined"),
            ("m1/mask(1) = v1", "e1(1) = v1", "is written while"),
            ("x0 = x1(1)", "x0 = x1(2)", "leaves its buffer"),
            ("x0 = x1(1)", "x0 = x1(1,1)", "needs 1 strides"),
            ("neg x0", "reduce-sum x0", "reduces in a map"),
            ("stores:\n        - e1(1) = v0\n        - m1/mask(1) = v1", "stores: []", "stores something"),
        ],
    );
    refused_kernel(1, "k8", &[("x0 = w/conv(1)", "x0 = w/conv(0)", "is written while")]);
    refused_kernel(
        2,
        "k1",
        &[
            ("        - 1\n", "        - 0\n", "innermost dimension"),
            ("        - 1\n", "        - 0\n        - 1\n", "innermost dimension"),
            ("m2/sum(1,0)", "m2/sum(0,0)", "names an element twice"),
            ("m2/sum(1,0)", "m2/p(1,1)", "along a reduced dimension"),
            ("m2/p(3,1) = v4", "m2/p(1,2) = v4", "live together and overlap"),
            ("m2/p(3,1) = v4", "m2/z(3,1) = v4", "m2/p"),
        ],
    );
    refused_kernel(
        2,
        "k2",
        &[
            ("count: 2", "count: 3", "in 3 groups"),
            ("partials(3,3,1)", "partials(1,3,1)", "not dense"),
            ("add v0 x1", "add v0 x0", "second pass"),
            ("x0 = m2/p(3,1)", "x0 = m2/g.partials(3,1)", "is written while"),
            ("space: 2x3", "space: 1152921504606846976x3", "too large"),
        ],
    );
}

#[test]
fn rows_copies_fills_and_random_numbers() {
    refused_kernel(
        2,
        "k3",
        &[
            ("table: w/embed(3,1)", "table: labels(0,0)", "is of i32, not f32"),
            ("table_rows: 5", "table_rows: 6", "leaves its buffer"),
            ("index: input/ids", "index: w/embed", "is of f32, not i32"),
            ("count: 2", "count: 3", "leaves its buffer"),
            ("rows: m2/rows(3,1)", "rows: m2/rows(0,1)", "names an element twice"),
        ],
    );
    refused_kernel(2, "k4", &[("table: m2/table(3,1)", "table: m2/table(1,1)", "names an element twice")]);
    refused_kernel(
        1,
        "k0",
        &[
            ("from: input/x(48,4,1,16)", "from: labels(0,0,0,0)", "keeps the dtype"),
            ("from: input/x(48,4,1,16)", "from: m1/copy(48,12,3,1)", "is written while"),
            ("to: m1/copy(48,12,3,1)", "to: m1/copy(48,12,3,0)", "names an element twice"),
        ],
    );
    refused_kernel(
        2,
        "k6",
        &[(
            "space: scalar\n        value: 0.0\n        to: m2.accuracy()",
            "space: '9'\n        value: 0.0\n        to: m2.accuracy(0)",
            "names an element twice",
        )],
    );
    refused_kernel(
        2,
        "k5",
        &[
            ("to: m2/noise(1)", "to: m2/noise(0)", "names an element twice"),
            ("to: m2/noise(1)", "to: labels(0)", "is of i32, not f32"),
            ("count: 6", "count: 7", "leaves its buffer"),
        ],
    );
}

#[test]
fn buffers_that_a_session_reads_and_writes_as_a_whole() {
    for (from, to, reason) in [
        ("batch: 2\n  seed", "batch: 0\n  seed", "at least one sample"),
        ("batch: 2\n  seed", "batch: 4\n  seed", "is not row-major with 4 samples"),
        ("buffer: scalar/lr,", "buffer: w/embed,", "is not in the Scalar space"),
        (
            "id: input/ids, space: input, dtype: i32, shape: '2', offset: 384, bytes: 8",
            "id: input/ids, space: input, dtype: u8, shape: '2', offset: 384, bytes: 2",
            "has dtype u8",
        ),
        (
            "shape: 2x3x4x4, offset: 0, bytes: 384}",
            "shape: 2x3x4x4, order: 0x2x3x1, offset: 0, bytes: 384}",
            "is not row-major",
        ),
        ("shape: '2', offset: 448, bytes: 8}", "shape: scalar, offset: 448, bytes: 4}", "is not row-major"),
        (
            "id: m1.loss, space: metric, dtype: f32, shape: scalar",
            "id: m1.loss, space: metric, dtype: f32, shape: 1x0",
            "do not hold",
        ),
        (
            "id: m1.loss, space: metric, dtype: f32, shape: scalar, offset: 0, bytes: 4",
            "id: m1.loss, space: metric, dtype: f32, shape: 1x0, offset: 0, bytes: 0",
            "is not one number",
        ),
        (
            "id: scalar/lr, space: scalar, dtype: f32, shape: scalar, offset: 0, bytes: 4",
            "id: scalar/lr, space: scalar, dtype: f32, shape: '2', offset: 0, bytes: 8",
            "is not one number",
        ),
        (
            "id: m2.eval/loss, space: arena, dtype: f32, shape: '2', offset: 64, bytes: 8",
            "id: m2.eval/loss, space: arena, dtype: f32, shape: '3', offset: 64, bytes: 12",
            "no result for 2 samples",
        ),
        (
            "id: m2.eval/correct, space: arena, dtype: f32, shape: '2', offset: 128, bytes: 8",
            "id: m2.eval/correct, space: arena, dtype: f32, shape: 2x2, offset: 128, bytes: 16",
            "no result for 2 samples",
        ),
        (
            "id: m2.eval/correct, space: arena, dtype: f32, shape: '2'",
            "id: m2.eval/correct, space: arena, dtype: i32, shape: '2'",
            "is not an f32 buffer of the arena",
        ),
        (
            "id: m2.eval/loss, space: arena, dtype: f32, shape: '2', offset: 64, bytes: 8, live: 1..2",
            "id: m2.eval/loss, space: arena, dtype: f32, shape: '2', offset: 64, bytes: 8, live: 1..1",
            "not live at the end",
        ),
        ("id: w/embed, space: parameter, dtype: f32", "id: w/embed, space: parameter, dtype: i32", "has dtype i32"),
    ] {
        refused(PLAN, from, to, reason);
    }
}

#[test]
fn boundaries_hold_what_they_should_while_they_are_needed() {
    // In the place of the gradient, which lives when e is written, and of what is live when the next module reads x.
    for (from, to, reason) in [
        ("order: 0x2x3x1, offset: 3840,", "order: 0x2x3x1, offset: 1024,", "live together and overlap"),
        ("order: 0x2x3x1, offset: 3712,", "order: 0x2x3x1, offset: 0,", "live together and overlap"),
        ("order: 0x2x3x1, offset: 3840,", "order: 0x2x3x1, offset: 3712,", "live together and overlap"),
        ("        small: x1(16,8,4,1)", "        small: e1(16,8,4,1)", "x1 is read before it is written"),
    ] {
        refused(PLAN, from, to, reason);
    }
    let unread = PLAN.replace("- x0 = x1(1)", "- x0 = e1(1)");
    refused(&unread, "        small: x1(16,8,4,1)", "        small: e1(16,8,4,1)", "nothing writes x1");
}

#[test]
fn every_buffer_has_one_purpose() {
    for (from, to, reason) in [
        // A second owner of the same weights would get around isolation.
        ("buffer: w/embed, role: weight, module: 2", "buffer: w/conv, role: weight, module: 2", "another purpose"),
        ("buffer: labels,", "buffer: input/ids,", "another purpose"),
        ("loss: m2.loss,", "loss: m1.loss,", "another purpose"),
        ("x: x1, e: e1", "x: x1, e: x1", "another purpose"),
        ("index: 1, value: pool", "index: 2, value: pool", "stands at place 1"),
        ("{name: const/0, buffer: const/0}", "{name: const/0, buffer: const/9}", "does not exist"),
        ("arena: 3968,", "arena: 18446744073709551615,", "overflow"),
        (
            "id: w/embed, space: parameter, dtype: f32, shape: 5x3, offset: 640, bytes: 60",
            "id: w/embed, space: arena, dtype: f32, shape: 5x3, offset: 640, bytes: 60, live: 0..1",
            "only a program's own buffers have a live range",
        ),
    ] {
        refused(PLAN, from, to, reason);
    }
    let twice = kernel(2, "k6");
    let (module, from) = PLAN.split_once("- index: 2\n").expect("two modules");
    assert_eq!(from.matches(twice).count(), 1);
    let text = format!("{module}- index: 2\n{}", from.replace("    - id: k6\n", "    - id: k5\n"));
    assert!(check(&text).is_err_and(|e| e.reason.contains("two kernels are called k5")));
}

#[test]
fn flags_as_bits() {
    let mask = "m1/mask, space: arena, dtype: u8, shape: 2x4x2x2, order: 0x2x3x1, offset: 960, bytes: 32";
    let bits = mask.replace("u8", "bit").replace("bytes: 32", "bytes: 4");
    let plan = PLAN.replace(mask, &bits);
    check(&plan).expect("a sound plan");
    for (from, to, reason) in [
        ("offset: 960, bytes: 4", "offset: 960, bytes: 32", "do not hold bit[2x4x2x2]"),
        ("m1/mask(1) = v1", "m1/mask(1) = v0", "is no flag"),
        ("m1/mask(1) = v1", "m1/mask@1(1) = v1", "leaves its buffer"),
        ("x0 = m1/mask(1)", "x0 = m1/mask@8(1)", "leaves its buffer"),
        ("x0 = m1/mask(1)", "x0 = m1/mask@1(0)", "is of bits"),
        ("id: m1/at, space: arena, dtype: u8", "id: m1/at, space: arena, dtype: bit", "do not hold"),
    ] {
        refused(&plan, from, to, reason);
    }
    let positions = "m1/at, space: arena, dtype: u8, shape: 2x4x2x2, order: 0x2x3x1, offset: 896, bytes: 32";
    let as_bits = positions.replace("u8", "bit").replace("bytes: 32", "bytes: 4");
    refused(PLAN, positions, &as_bits, "is of bit, not u8 or i32");
    let (store, fewer) = (kernel(1, "k4"), kernel(1, "k4").replace("space: '32'", "space: '28'"));
    refused(&plan, store, &fewer, "is of bits, which cannot be used so");
}
