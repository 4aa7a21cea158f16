//! Which libraries a run asks for.

use std::fmt;
use std::str::FromStr;

/// A library that computes products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Library {
    /// Matrix products, and convolutions of single pixels.
    Cublaslt,
    /// Convolutions.
    Cudnn,
}

impl Library {
    /// Every library.
    pub const ALL: &'static [Library] = &[Library::Cublaslt, Library::Cudnn];

    /// As written after `--libraries`.
    pub fn name(self) -> &'static str {
        match self {
            Library::Cublaslt => "cublaslt",
            Library::Cudnn => "cudnn",
        }
    }

    /// As NVIDIA writes it.
    pub fn title(self) -> &'static str {
        match self {
            Library::Cublaslt => "cuBLASLt",
            Library::Cudnn => "cuDNN",
        }
    }
}

/// Which libraries compute a plan's products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Libraries {
    /// None: the plan's own kernels do.
    None,
    /// One of them; an error where it is missing.
    One(Library),
    /// All of them; an error where one is missing.
    All,
    /// Those that are there.
    Auto,
}

impl Libraries {
    /// Whether a library is asked for.
    pub fn includes(self, library: Library) -> bool {
        match self {
            Libraries::None => false,
            Libraries::One(l) => l == library,
            Libraries::All | Libraries::Auto => true,
        }
    }

    /// Those whose titles a text has, such as one that names what computed a run's products.
    pub fn named_in(text: &str) -> Libraries {
        let mut named = Library::ALL.iter().filter(|l| text.contains(l.title()));
        match (named.next(), named.next()) {
            (None, _) => Libraries::None,
            (Some(&l), None) => Libraries::One(l),
            (Some(_), Some(_)) => Libraries::All,
        }
    }
}

/// As written after `--libraries`.
impl fmt::Display for Libraries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Libraries::None => f.write_str("none"),
            Libraries::One(l) => f.write_str(l.name()),
            Libraries::All => f.write_str(&Library::ALL.iter().map(|l| l.name()).collect::<Vec<_>>().join(",")),
            Libraries::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for Libraries {
    type Err = String;
    fn from_str(s: &str) -> Result<Libraries, String> {
        match s {
            "none" => return Ok(Libraries::None),
            "auto" => return Ok(Libraries::Auto),
            _ => {}
        }
        let mut named = Libraries::None;
        for part in s.split(',') {
            let library = Library::ALL.iter().copied().find(|l| l.name() == part).ok_or_else(|| {
                let names: Vec<&str> = Library::ALL.iter().map(|l| l.name()).collect();
                format!(
                    "`{part}` is not one of none, {}, auto (several libraries: with commas between)",
                    names.join(", ")
                )
            })?;
            named = match named {
                Libraries::None => Libraries::One(library),
                Libraries::One(other) if other == library => named,
                Libraries::One(_) | Libraries::All | Libraries::Auto => Libraries::All,
            };
        }
        Ok(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        let one = |l| Libraries::One(l);
        for choice in [Libraries::None, one(Library::Cublaslt), one(Library::Cudnn), Libraries::All, Libraries::Auto] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("cudnn,cublaslt".parse(), Ok(Libraries::All));
        assert_eq!("cudnn,cudnn".parse(), Ok(one(Library::Cudnn)));
        for wrong in ["", "cudnn,", "cublas", "none,cudnn", "auto,cudnn"] {
            assert!(wrong.parse::<Libraries>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn libraries_of_a_text() {
        assert_eq!(Libraries::named_in("cuBLASLt 12.9"), Libraries::One(Library::Cublaslt));
        assert_eq!(Libraries::named_in("cuDNN 9.26"), Libraries::One(Library::Cudnn));
        assert_eq!(Libraries::named_in("cuBLASLt 12.9, cuDNN 9.26"), Libraries::All);
        assert_eq!(Libraries::named_in(""), Libraries::None);
    }
}
