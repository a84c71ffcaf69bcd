//! One row of the table of environment variables, and the macro that declares a group of rows.

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// The name in the environment.
    pub name: &'static str,
    /// The values that it takes, in words.
    pub form: &'static str,
    /// What holds when it is not set, in words.
    pub default: &'static str,
    /// What it does.
    pub effect: &'static str,
}

/// A value that cannot be parsed. The default is used instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name} is \"{value}\", which is not understood; expected: {form}; using the default: {default}"
)]
pub struct Malformed {
    /// The name of the variable.
    pub name: &'static str,
    /// Its value, in which bytes that are not UTF-8 are replaced.
    pub value: String,
    /// The values that it takes, in words.
    pub form: &'static str,
    /// What is used instead, in words.
    pub default: &'static str,
}

/// Declares a group of settings once: the struct, the rows of its table, and its reader. In the
/// braces are the groups that the struct contains and that are declared elsewhere.
macro_rules! settings {
    (
        $(#[$meta:meta])*
        pub struct $group:ident {
            $(
                $(#[doc = $part_doc:literal])*
                $part:ident: $part_type:ident,
            )*
        }
        $(
            $(#[doc = $doc:literal])*
            $field:ident: $type:ty = $name:literal {
                values: $form:literal
                default: $default:literal
                parse: $parse:expr,
                initial: $initial:expr,
            }
        )*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $group {
            $(
                #[doc = concat!("`", $name, "`: ", $form, ". Default: ", $default, ".\n\n")]
                $(#[doc = $doc])*
                pub $field: $type,
            )*
            $(
                $(#[doc = $part_doc])*
                pub $part: $part_type,
            )*
        }

        impl $group {
            /// The rows of this group.
            pub(super) const ROWS: &[Variable] = &[$(Variable {
                name: $name,
                form: $form,
                default: $default,
                effect: concat!($($doc),*),
            }),*];

            /// Reads the group through `lookup`, and adds what cannot be parsed to `malformed`.
            pub(super) fn read_rows(
                lookup: &impl Fn(&str) -> Option<String>,
                malformed: &mut Vec<Malformed>,
            ) -> Self {
                let mut rows = Self::ROWS.iter();
                Self {
                    $($field: read_row(rows.next(), lookup, malformed, $parse, $initial),)*
                    $($part: $part_type::read_rows(lookup, malformed),)*
                }
            }
        }
    };
}

pub(super) use settings;

/// The value of one row: what is set, or `initial` if nothing is set or the value is malformed.
pub(super) fn read_row<T>(
    row: Option<&'static Variable>,
    lookup: &impl Fn(&str) -> Option<String>,
    malformed: &mut Vec<Malformed>,
    parse: impl Fn(&str) -> Option<T>,
    initial: T,
) -> T {
    let Some(row) = row else { return initial };
    let Some(value) = lookup(row.name).filter(|value| !value.is_empty()) else { return initial };
    match parse(value.trim()) {
        Some(parsed) => parsed,
        None => {
            let Variable { name, form, default, .. } = *row;
            malformed.push(Malformed { name, value, form, default });
            initial
        }
    }
}
