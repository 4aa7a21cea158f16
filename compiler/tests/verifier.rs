//! The verifier: for each invariant one graph in text form that breaks it, and what is said of it. Text that breaks the
//! rules of the text form itself does not get as far.

use slrc_compiler::ir::graph::{Graph, Init, Node, OriginId, VarKind, Variable};
use slrc_compiler::ir::op::Splat;
use slrc_compiler::ir::types::Number;
use slrc_compiler::ir::verify::{Spec, verify};
use slrc_compiler::ir::{NodeId, Type, text};
use slrc_plan::kernel::Phase;

/// A sound graph; each case replaces one of its lines or adds one.
const SOUND: &str = r#"graph "sound"
input in0 "x" data f32[2x3]
input in1 "y" labels i32[2]
var var0 "w" weight f32[3x3] uniform(0.5)
var var1 "frozen" frozen f32[2x3] constant(0.0)
const const0 f32[2] 1.0 2.0
scalar scalar0 "lr" 0.1 0 constant
%0 = input{index=0} : f32[2x3] @"" forward
%1 = variable{index=0} : f32[3x3] @"" forward
%2 = matmul(%0, %1) : f32[2x3] @"fc" forward
%3 = detach(%2) : f32[2x3] @"" forward
%4 = log-sum-exp{axes=1}(%2) : f32[2x1] @"" loss
%5 = mode-select(%2, %3) : f32[2x3] @"" forward
%6 = constant{index=0} : f32[2] @"" forward
%7 = step-scalar{index=0} : f32[scalar] @"" update
%8 = map{fn=lt}(%0, %2) : u8[2x3] @"" forward
root output "logits" %5
root update var0 %1
"#;

/// A line of [`SOUND`], what stands in its place, and the message.
type Case = (&'static str, &'static str, &'static str);

fn doctored(case: &Case) -> String {
    let (line, replacement, _) = case;
    assert_eq!(SOUND.matches(line).count(), 1, "`{line}` is one line of the sound graph");
    SOUND.replace(line, replacement)
}

/// What [`verify`] says of a graph, without the words around every message.
fn verdict(text: &str, spec: Spec) -> Result<(), String> {
    let graph = text::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    verify(&graph, spec).map_err(|e| {
        assert_eq!(e.stage, spec.stage);
        assert!(e.to_string().starts_with("internal error: after "), "{e}");
        format!("{}: {}", e.place, e.reason)
    })
}

#[test]
fn the_sound_graph_is_sound() {
    assert_eq!(verdict(SOUND, Spec::open("test")), Ok(()));
    let printed = text::print(&text::parse(SOUND).expect("sound"));
    assert_eq!(verdict(&printed, Spec::open("test")), Ok(()));
}

/// What always holds.
const ALWAYS: &[Case] = &[
    // Leaves refer to entries of the tables, and have their types.
    (
        "%0 = input{index=0} : f32[2x3] @\"\" forward",
        "%0 = input{index=7} : f32[2x3] @\"\" forward",
        "%0 = input{index=7} (from ``): refers to nothing",
    ),
    (
        "%1 = variable{index=0} : f32[3x3] @\"\" forward",
        "%1 = variable{index=9} : f32[3x3] @\"\" forward",
        "%1 = variable{index=9} (from ``): refers to nothing",
    ),
    (
        "%6 = constant{index=0} : f32[2] @\"\" forward",
        "%6 = constant{index=1} : f32[2] @\"\" forward",
        "%6 = constant{index=1} (from ``): refers to nothing",
    ),
    (
        "%7 = step-scalar{index=0} : f32[scalar] @\"\" update",
        "%7 = step-scalar{index=1} : f32[scalar] @\"\" update",
        "%7 = step-scalar{index=1} (from ``): refers to nothing",
    ),
    (
        "input in0 \"x\" data f32[2x3]",
        "input in0 \"x\" data f32[2x4]",
        "%0 = input{index=0} (from ``): has type f32[2x3], its rule gives f32[2x4]",
    ),
    (
        "%7 = step-scalar{index=0} : f32[scalar] @\"\" update",
        "%7 = step-scalar{index=0} : f32[1] @\"\" update",
        "%7 = step-scalar{index=0} (from ``): has type f32[1], its rule gives f32[scalar]",
    ),
    (
        "const const0 f32[2] 1.0 2.0",
        "const const0 f32[2] 1.0 2.0 3.0",
        "%6 = constant{index=0} (from ``): constant of 3 elements has type f32[2]",
    ),
    // Every type is what the op's shape rule gives, and the rule accepts the operands.
    (
        "%2 = matmul(%0, %1) : f32[2x3] @\"fc\" forward",
        "%2 = matmul(%1, %1) : f32[2x3] @\"fc\" forward",
        "%2 = matmul (from `fc`): has type f32[2x3], its rule gives f32[3x3]",
    ),
    (
        "%2 = matmul(%0, %1) : f32[2x3] @\"fc\" forward",
        "%2 = matmul(%0) : f32[2x3] @\"fc\" forward",
        "%2 = matmul (from `fc`): takes 2 operands, not 1",
    ),
    (
        "%8 = map{fn=lt}(%0, %2) : u8[2x3] @\"\" forward",
        "%8 = map{fn=lt}(%0, %2) : f32[2x3] @\"\" forward",
        "%8 = map{fn=lt} (from ``): has type f32[2x3], its rule gives u8[2x3]",
    ),
    (
        "%8 = map{fn=lt}(%0, %2) : u8[2x3] @\"\" forward",
        "%8 = map{fn=lt}(%0, %1) : u8[2x3] @\"\" forward",
        "%8 = map{fn=lt} (from ``): `lt` needs operands of one shape, not f32[2x3] and f32[3x3]",
    ),
    // Updates.
    ("root update var0 %1", "root update var5 %1", "root Update(VarId(5)): variable does not exist"),
    ("root update var0 %1", "root update var0 %2", "root Update(VarId(0)): w has type f32[3x3], not f32[2x3]"),
    ("root update var0 %1", "root update var1 %2", "root Update(VarId(1)): frozen is frozen"),
    ("root update var0 %1", "root update var0 %1\nroot update var0 %1", "root Update(VarId(0)): w is updated twice"),
    // Names.
    (
        "var var1 \"frozen\" frozen f32[2x3] constant(0.0)",
        "var var1 \"w\" frozen f32[2x3] constant(0.0)",
        "variables: `w` occurs twice",
    ),
    ("input in1 \"y\" labels i32[2]", "input in1 \"x\" labels i32[2]", "inputs: `x` occurs twice"),
];

#[test]
fn what_always_holds() {
    for case in ALWAYS {
        // The spec that allows most refuses them all the same.
        assert_eq!(verdict(&doctored(case), Spec::open("test")), Err(case.2.to_string()), "{}", case.1);
    }
}

/// What holds from a stage on.
#[test]
fn what_stages_promise() {
    let (no_modes, no_detach) = (
        ("%5 = mode-select(%2, %3) : f32[2x3] @\"\" forward", "%5 = map{fn=neg}(%2) : f32[2x3] @\"\" forward", ""),
        ("%3 = detach(%2) : f32[2x3] @\"\" forward", "%3 = map{fn=abs}(%2) : f32[2x3] @\"\" forward", ""),
    );
    let modes = "%5 = mode-select (from ``): modes are resolved by now";
    let detach = "%3 = detach (from ``): detach is removed by now";
    let composite = "%4 = log-sum-exp{axes=1} (from ``): composites are expanded by now";
    let without = |cases: &[&Case]| cases.iter().fold(SOUND.to_string(), |text, c| text.replace(c.0, c.1));

    assert_eq!(verdict(SOUND, Spec::one_mode("test")), Err(modes.into()));
    assert_eq!(verdict(&without(&[&no_modes]), Spec::one_mode("test")), Ok(()));
    assert_eq!(verdict(SOUND, Spec::closed("test")), Err(detach.into()));
    assert_eq!(verdict(&without(&[&no_detach]), Spec::closed("test")), Err(composite.into()));
    let expanded = ("%4 = log-sum-exp{axes=1}(%2)", "%4 = reduce{combine=sum axes=1}(%2)", "");
    assert_eq!(verdict(&without(&[&no_detach, &expanded]), Spec::closed("test")), Err(modes.into()));
    assert_eq!(verdict(&without(&[&no_modes, &no_detach, &expanded]), Spec::closed("test")), Ok(()));
}

/// Damage that the text form cannot express, done to the graph itself.
#[test]
fn an_origin_that_does_not_exist() {
    let mut g = Graph::new("origins");
    let op = Splat { value: Number(1.0), shape: vec![] }.into();
    g.add(Node { op, operands: vec![], ty: Type::f32([]), origin: OriginId(3), phase: Phase::Forward });
    let e = verify(&g, Spec::open("test")).expect_err("no such origin");
    assert_eq!(e.reason, "its origin does not exist");
}

#[test]
fn a_root_that_does_not_exist() {
    let mut g = text::parse(SOUND).expect("sound");
    g.roots[0].value = NodeId(99);
    let e = verify(&g, Spec::open("test")).expect_err("no such node");
    assert_eq!(e.reason, "%99 does not exist");
}

/// An entry of a table that nothing reads is checked too.
#[test]
fn names_are_unique_even_of_what_nothing_reads() {
    let mut g = Graph::new("names");
    for _ in 0..2 {
        let (name, ty) = ("w".to_string(), Type::f32([]));
        g.add_variable(Variable { name, kind: VarKind::Optimizer, ty, init: Init::Constant(0.0) });
    }
    assert!(verify(&g, Spec::open("test")).is_err_and(|e| e.reason == "`w` occurs twice"));
}

/// What is not well formed text; the line is named.
const MALFORMED: &[Case] = &[
    // Operands come before users, and roots refer to nodes.
    (
        "%2 = matmul(%0, %1) : f32[2x3] @\"fc\" forward",
        "%2 = matmul(%0, %5) : f32[2x3] @\"fc\" forward",
        "line 10: %5 is not defined",
    ),
    ("root output \"logits\" %5", "root output \"logits\" %9", "line 17: %9 is not defined"),
    (
        "%1 = variable{index=0} : f32[3x3] @\"\" forward",
        "%2 = variable{index=0} : f32[3x3] @\"\" forward",
        "line 9: nodes are numbered in order: %2 should be %1",
    ),
    (
        "%8 = map{fn=lt}(%0, %2) : u8[2x3] @\"\" forward",
        "%8 = matmul(%0, %1) : f32[2x3] @\"other\" forward",
        "line 16: an equal node exists already",
    ),
    (
        "%3 = detach(%2) : f32[2x3] @\"\" forward",
        "%3 = attach(%2) : f32[2x3] @\"\" forward",
        "line 11: `attach` is not an op",
    ),
    (
        "%4 = log-sum-exp{axes=1}(%2) : f32[2x1] @\"\" loss",
        "%4 = log-sum-exp(%2) : f32[2x1] @\"\" loss",
        "line 12: attribute `axes` is missing",
    ),
    (
        "%4 = log-sum-exp{axes=1}(%2) : f32[2x1] @\"\" loss",
        "%4 = log-sum-exp{axes=one}(%2) : f32[2x1] @\"\" loss",
        "line 12: attribute `axes` cannot be `one`",
    ),
    (
        "%3 = detach(%2) : f32[2x3] @\"\" forward",
        "%3 = detach(%2) : f16[2x3] @\"\" forward",
        "line 11: `f16[2x3]` is not a type such as f32[64x10]",
    ),
    (
        "%3 = detach(%2) : f32[2x3] @\"\" forward",
        "%3 = detach(%2) : f32[2x3] @\"\" sideways",
        "line 11: a node ends with its phase",
    ),
    (
        "input in1 \"y\" labels i32[2]",
        "input in1 \"y\" target i32[2]",
        "line 3: an input is data, labels, boundary or boundary-gradient",
    ),
    (
        "var var0 \"w\" weight f32[3x3] uniform(0.5)",
        "var var0 \"w\" weight f32[3x3] uniform",
        "line 4: `uniform` is not an init",
    ),
    (
        "scalar scalar0 \"lr\" 0.1 0 constant",
        "scalar scalar0 \"lr\" 0.1 0 linear",
        "line 7: `linear` is not a schedule",
    ),
    ("root update var0 %1", "root update w %1", "line 18: an update names a variable, such as var3"),
    ("graph \"sound\"", "graph \"sound", "line 1: a quoted name does not end"),
    ("graph \"sound\"", "graf \"sound\"", "line 1: `graf` begins no line"),
];

#[test]
fn malformed_text() {
    for case in MALFORMED {
        let e = text::parse(&doctored(case)).expect_err(case.1);
        assert_eq!(e.to_string(), case.2, "{}", case.1);
    }
}

/// No text makes the parser panic: every prefix, and every line with a character taken out, is read or refused.
#[test]
fn damaged_text_is_refused_or_read() {
    for at in (0..SOUND.len()).filter(|&at| SOUND.is_char_boundary(at)) {
        for text in [SOUND[..at].to_string(), format!("{}{}", &SOUND[..at], &SOUND[at + 1..])] {
            if let Ok(g) = text::parse(&text) {
                // Whatever was read has a verdict.
                let _ = verify(&g, Spec::open("test"));
            }
        }
    }
}
