//! Choices of a spec that have names: each is its names, once.

use serde::{Deserialize, Serialize};

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $( $(#[$vdoc:meta])* $variant:ident = $text:literal, )* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $( $(#[$vdoc])* #[serde(rename = $text)] $variant, )* }

        impl $name {
            /// Every choice, in order.
            pub const ALL: &'static [$name] = &[ $( $name::$variant, )* ];

            /// As written in a spec or on the command line.
            pub fn name(self) -> &'static str {
                match self { $( $name::$variant => $text, )* }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|c| c.name() == s).ok_or_else(|| {
                    let all: Vec<&str> = Self::ALL.iter().map(|c| c.name()).collect();
                    format!("`{s}` is not one of {}", all.join(", "))
                })
            }
        }
    };
}

choice! {
    /// A local head; sources are in docs/method.md.
    HeadKind {
        /// By the boundary's shape: pool-linear for images, token for sequences, linear for vectors; pixel where the
        /// network classifies pixels.
        Auto = "auto",
        /// Global average pool, linear.
        GapLinear = "gap-linear",
        /// Average pool to 2x2, flatten, linear.
        PoolLinear = "pool-linear",
        /// LayerNorm, mean over tokens, linear.
        Token = "token",
        /// Conv 3x3, BatchNorm, ReLU, global average pool, linear, ReLU, linear.
        Conv = "conv",
        /// Pool to a quarter side, three 1x1 convolutions, pool to 2x2, three linear layers, linear.
        MlpSr = "mlp-sr",
        /// Flatten (images: at most 4x4), linear.
        Linear = "linear",
        /// A class for each pixel: convolution 1x1, of another size brought to the logits'.
        Pixel = "pixel",
    }
}

choice! {
    /// How the reconciliation gradient is computed.
    ReconcileMode {
        /// Not at all: plain local learning.
        Off = "off",
        /// By differentiating the input gradient.
        Exact = "exact",
        /// By a second pass at a perturbed input.
        FiniteDifference = "finite-difference",
        /// By a directional derivative of the gradient.
        Tangent = "tangent",
        /// As `tangent`, for modules of a single layer with weights: no differentiation through layers.
        BpFree = "bp-free",
    }
}

choice! {
    /// Distance between the input gradient g and the output gradient e.
    Distance {
        /// `B sum((g - e)^2)`.
        Squared = "squared",
        /// `|g - e|^2 / (|e|^2 + |g|^2)`.
        Relative = "relative",
        /// `1 - <g, e> / (|g| |e|)` over the whole tensor.
        Cosine = "cosine",
    }
}

choice! {
    /// What the perturbed pass does at kinks.
    Kinks {
        /// Re-uses the first pass's choices.
        Frozen = "frozen",
        /// Chooses anew.
        Free = "free",
    }
}

choice! {
    /// What of a step is computed again where it is used, rather than kept until then.
    Recompute {
        /// Elementwise work (normalisation, activation), where that takes fewer bytes at a step's fullest moment.
        Elementwise = "elementwise",
        /// That, and products whose results are large for the work they take, for a twentieth of a step's work at most.
        Products = "products",
        /// Nothing.
        None = "none",
    }
}

choice! {
    /// How convolutions are computed.
    Convolution {
        /// The fastest way that keeps f32's accuracy: on the CPU Winograd's algorithm where it pays.
        Auto = "auto",
        /// Every product of a weight and a number it meets, summed.
        Direct = "direct",
    }
}

choice! {
    /// Where sums along the columns of a product, or of its second operand, are computed: BatchNorm's statistics and
    /// its gradient's, and the gradients of biases.
    ColumnSums {
        /// In the product's kernel on a GPU, in kernels of their own on a CPU.
        Auto = "auto",
        /// In the kernel of the product: nothing is read again. NVIDIA's libraries do not compute such a product.
        Products = "products",
        /// In kernels of their own.
        Kernels = "kernels",
    }
}

choice! {
    /// Where elementwise work on the operands of a product is done.
    Prologues {
        /// In the kernel of the product, as an operand is read: it is not stored. NVIDIA's libraries do not compute
        /// such a product.
        Products = "products",
        /// In kernels of their own.
        Kernels = "kernels",
    }
}

choice! {
    /// An optimizer.
    OptimizerKind {
        /// Stochastic gradient descent, with momentum.
        Sgd = "sgd",
        /// Adam with decoupled weight decay.
        AdamW = "adamw",
    }
}

choice! {
    /// Shape of the learning rate over the run.
    ScheduleKind {
        /// Stays.
        Constant = "constant",
        /// Half a cosine from `lr` to `last`.
        Cosine = "cosine",
        /// Times `gamma` after every `every` steps.
        Step = "step",
    }
}

choice! {
    /// Where initial weights come from.
    InitMode {
        /// The model's own.
        Keep = "keep",
        /// Drawn by the seed.
        Random = "random",
    }
}

impl Distance {
    /// The weight that worked in our measurements (docs/method.md).
    pub fn usual_lambda(self) -> f64 {
        match self {
            Distance::Squared => 3.0,
            Distance::Relative => 0.02,
            Distance::Cosine => 0.3,
        }
    }
}
