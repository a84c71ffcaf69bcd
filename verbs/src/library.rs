//! Loading libibverbs.

use std::path::Path;
use std::sync::Arc;

use crate::error::LibraryError;
use crate::sys;

/// The name under which the dynamic loader finds libibverbs.
const NAME: &str = "libibverbs.so.1";

/// A loaded libibverbs. It is never unloaded, because its providers do not support that.
pub struct Library {
    pub(crate) functions: sys::IbVerbs,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Library(..)")
    }
}

/// The function of that name, or the error that it is missing.
macro_rules! function {
    ($library:expr, $name:ident) => {
        match &$library.functions.$name {
            Ok(function) => Ok(*function),
            Err(_) => Err($crate::VerbsError::Missing { function: stringify!($name) }),
        }
    };
}
pub(crate) use function;

impl Library {
    /// Loads libibverbs, or the library at `path` in its place.
    ///
    /// # Errors
    /// There is no such file, or it is not a shared library.
    pub fn load(path: Option<&Path>) -> Result<Arc<Self>, LibraryError> {
        let name = path.unwrap_or(Path::new(NAME));
        let failed = |why: libloading::Error| LibraryError {
            name: name.display().to_string(),
            why: why.to_string(),
        };
        // SAFETY: loading libibverbs runs its constructors, which only set up its own tables.
        let library = unsafe { libloading::Library::new(name) }.map_err(failed)?;
        // SAFETY: the functions have the types of the header of libibverbs, whose interface is
        // versioned and stays compatible.
        let functions = unsafe { sys::IbVerbs::from_library(library) }.map_err(failed)?;
        Ok(Arc::new(Self { functions }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_missing_is_an_error_with_its_name() {
        let error = Library::load(Some(Path::new("/nowhere/libibverbs.so.1"))).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/libibverbs.so.1 cannot be loaded: "));
    }
}
