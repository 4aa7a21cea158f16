//! Scalar functions as CUDA C++ expressions. Flags are 0.0f and 1.0f, as on the CPU device.

use slrc_plan::ScalarFn;

/// `f` of arguments that are names, or numbers in parentheses where negative.
pub(super) fn expression(f: ScalarFn, args: &[String]) -> String {
    let arg = |i: usize| args.get(i).map_or("", String::as_str);
    let (a, b, c) = (arg(0), arg(1), arg(2));
    match f {
        ScalarFn::Copy => a.to_string(),
        ScalarFn::Neg => format!("-{a}"),
        ScalarFn::Abs => format!("fabsf({a})"),
        ScalarFn::Sign => format!("{a} > 0.0f ? 1.0f : ({a} < 0.0f ? -1.0f : {a})"),
        ScalarFn::Floor => format!("floorf({a})"),
        ScalarFn::Exp => format!("expf({a})"),
        ScalarFn::Log => format!("logf({a})"),
        ScalarFn::Sqrt => format!("sqrtf({a})"),
        ScalarFn::Rsqrt => format!("rsqrtf({a})"),
        ScalarFn::Recip => format!("1.0f / {a}"),
        ScalarFn::Tanh => format!("tanhf({a})"),
        ScalarFn::Sigmoid => format!("1.0f / (1.0f + expf(-{a}))"),
        ScalarFn::Erf => format!("erff({a})"),
        ScalarFn::Sin => format!("sinf({a})"),
        ScalarFn::Atan => format!("atanf({a})"),
        ScalarFn::Cos => format!("cosf({a})"),
        ScalarFn::Not => format!("1.0f - {a}"),
        ScalarFn::Add => format!("{a} + {b}"),
        ScalarFn::Sub => format!("{a} - {b}"),
        ScalarFn::Mul => format!("{a} * {b}"),
        ScalarFn::Div => format!("{a} / {b}"),
        ScalarFn::Pow => format!("powf({a}, {b})"),
        ScalarFn::Lt => format!("{a} < {b} ? 1.0f : 0.0f"),
        ScalarFn::Le => format!("{a} <= {b} ? 1.0f : 0.0f"),
        ScalarFn::Eq => format!("{a} == {b} ? 1.0f : 0.0f"),
        ScalarFn::And => format!("{a} != 0.0f && {b} != 0.0f ? 1.0f : 0.0f"),
        ScalarFn::Or => format!("{a} != 0.0f || {b} != 0.0f ? 1.0f : 0.0f"),
        ScalarFn::Select => format!("{a} != 0.0f ? {b} : {c}"),
    }
}
