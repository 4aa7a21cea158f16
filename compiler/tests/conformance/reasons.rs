//! Reasons for which cases are left out, a line each.

const INTEGERS: &str = "integers here are shapes and indices; their bits are not modelled";
const CEIL: &str = "what ceil_mode adds beyond the padding is not counted, as in the newer package";
const WRAPS: &str = "integers out of range wrap, as in the newer package";
const SATURATES: &str = "numbers out of range become the nearest, as in the newer package";
const RANDOM: &str = "random numbers: a plan draws its own";
const BOXES: &str = "selection among boxes: nothing to train behind it";
const SIGNALS: &str = "complex numbers and signals are not there";

/// What is not there, and why, where the importer only knows that it is not.
const OPS: &[(&str, &str)] = &[
    ("BitCast", INTEGERS),
    ("ImageDecoder", "decoding of images is not part of a network"),
    ("MelWeightMatrix", SIGNALS),
    ("NonMaxSuppression", BOXES),
    ("TfIdfVectorizer", "counting of n-grams is not part of a network"),
    ("Unique", "its result's shape depends on the data"),
];

/// Cases whose result is another on purpose, by the beginning of their name.
const DIFFERENT: &[(&str, &str)] = &[
    ("averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True", CEIL),
    ("bernoulli", RANDOM),
    ("cast_FLOAT16_to_INT4", WRAPS),
    ("cast_FLOAT16_to_UINT4", WRAPS),
    ("cast_FLOAT_to_INT4", WRAPS),
    ("cast_FLOAT_to_UINT4", WRAPS),
    ("dynamicquantizelinear", "half a step in single precision, which is none in double"),
    ("gather_negative_indices", "indices from the end as data: a step that meets one fails and says so"),
    ("qlinearmatmul_2D_int8", SATURATES),
    ("qlinearmatmul_3D_int8", SATURATES),
    ("reduce_max_empty_set_bool", "the maximum of no flags"),
    ("training_dropout", RANDOM),
];

/// The reason for which a case's result may differ.
pub(crate) fn different(case: &str) -> Option<&'static str> {
    DIFFERENT.iter().find(|d| case.starts_with(d.0)).map(|d| d.1)
}

/// The importer's first reason for a case, or the one given here for its operator.
pub(crate) fn short(reason: &str) -> String {
    if reason.contains("does not say which opset of ONNX") {
        return "operators of another domain: trees, preprocessing, optimizers".into();
    }
    let line = reason.lines().nth(1).unwrap_or(reason).trim();
    // node "y" (Op, opset 20): why
    let Some((head, why)) = line.split_once("): ") else { return line.to_string() };
    let op = head.rsplit_once('(').map_or("", |x| x.1).split(',').next().unwrap_or("");
    let why = OPS.iter().find(|o| o.0 == op && why == "not supported").map_or(why, |o| o.1);
    format!("{op}: {why}")
}

/// Every operator that is left out without a word of the importer's has a reason here.
pub(crate) fn is_shrug(said: &str) -> bool {
    said.ends_with(": not supported")
}
