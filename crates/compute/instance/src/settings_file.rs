//! Lines of PostgreSQL's files of settings, as `src/backend/utils/misc/guc-file.l` reads them: one setting a line.

/// What one line says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Line {
    /// Nothing, or a comment.
    Nothing,
    /// A setting, or a directive such as `include`, which looks like one.
    Setting {
        /// As it is written; PostgreSQL takes upper and lower case for the same.
        name: String,
        /// Without quotes and escapes.
        value: String,
    },
    /// The server would not read this, and none of the file with it.
    Unreadable,
}

/// Reads one line, without its line feed.
pub(crate) fn read_line(line: &[u8]) -> Line {
    let rest = skip_blanks(line);
    if ends(rest) {
        return Line::Nothing;
    }
    read_setting(rest).unwrap_or(Line::Unreadable)
}

fn read_setting(line: &[u8]) -> Option<Line> {
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80;
    let name_bytes = line
        .iter()
        .position(|&byte| !is_letter(byte) && !byte.is_ascii_digit() && byte != b'.')
        .unwrap_or(line.len());
    let (name, rest) = line.split_at_checked(name_bytes)?;
    if !name.first().is_some_and(|&byte| is_letter(byte)) {
        return None;
    }
    let rest = skip_blanks(rest);
    let rest = skip_blanks(rest.strip_prefix(b"=").unwrap_or(rest));
    let (value, rest) = match rest.strip_prefix(b"'") {
        Some(quoted) => read_quoted(quoted)?,
        None => {
            let is_end = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'#' | b'\'' | b'=' | 0);
            let (value, rest) = rest.split_at(rest.iter().position(is_end).unwrap_or(rest.len()));
            // An empty value has quotes.
            (Some(value).filter(|value| !value.is_empty())?.to_vec(), rest)
        }
    };
    let is_whole = ends(skip_blanks(rest)) && !value.contains(&0);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
    is_whole.then_some(Line::Setting { name: text(name.to_vec())?, value: text(value)? })
}

/// The value up to its closing quote, and what stands after that (`DeescapeQuotedString`).
fn read_quoted(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut value = Vec::new();
    let mut rest = text;
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        match byte {
            b'\'' => match rest.strip_prefix(b"'") {
                Some(after) => {
                    value.push(b'\'');
                    rest = after;
                }
                None => return Some((value, rest)),
            },
            b'\\' => {
                let digits = rest.iter().take(3).take_while(|byte| (b'0'..=b'7').contains(*byte)).count();
                let (escape, after) = rest.split_at_checked(digits.max(1))?;
                rest = after;
                value.push(match escape {
                    [b'b'] => 8,
                    [b'f'] => 12,
                    [b'n'] => b'\n',
                    [b'r'] => b'\r',
                    [b't'] => b'\t',
                    [other] if digits == 0 => *other,
                    octal => octal.iter().fold(0, |number: u8, digit| {
                        number.wrapping_mul(8).wrapping_add(digit.wrapping_sub(b'0'))
                    }),
                });
            }
            _ => value.push(byte),
        }
    }
}

fn skip_blanks(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r')).count();
    text.get(blanks..).unwrap_or(&[])
}

/// Whether nothing but a comment follows.
fn ends(rest: &[u8]) -> bool {
    matches!(rest.first(), None | Some(b'#'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_read_as_postgresql_reads_them() {
        for (line, name, value) in [
            ("work_mem = '7MB'", "work_mem", "7MB"),
            ("  Work_Mem 7MB # much", "Work_Mem", "7MB"),
            ("fsync=off\r", "fsync", "off"),
            ("fsync'off'", "fsync", "off"),
            ("a.b = 'it''s \\'quoted\\' # \\\\'", "a.b", "it's 'quoted' # \\"),
            ("wal_level = 'm\\151nimal'", "wal_level", "minimal"),
            ("log_line_prefix = '%m [%p] \\t'", "log_line_prefix", "%m [%p] \t"),
            ("x = ''", "x", ""),
            ("include_if_exists = 'initdb.conf'", "include_if_exists", "initdb.conf"),
            ("geqo_seed = -1.5e-3", "geqo_seed", "-1.5e-3"),
        ] {
            let expected = Line::Setting { name: name.to_owned(), value: value.to_owned() };
            assert_eq!(read_line(line.as_bytes()), expected, "{line}");
        }
        for line in ["", "  \t\r", "# work_mem = 7MB", "   #"] {
            assert_eq!(read_line(line.as_bytes()), Line::Nothing, "{line}");
        }
        for line in [
            "work_mem",
            "work_mem =",
            "work_mem # it's",
            "= 5",
            "5 = x",
            "x = 'open",
            "x = 'a' b",
            "x = a b",
            "x = a=b",
            "x='\\",
        ] {
            assert_eq!(read_line(line.as_bytes()), Line::Unreadable, "{line}");
        }
        assert_eq!(read_line(b"x = 'a\0b'"), Line::Unreadable);
        assert_eq!(read_line(b"x = '\\0'"), Line::Unreadable);
    }

    proptest! {
        #[test]
        fn no_line_is_too_strange(line in prop::collection::vec(any::<u8>(), 0..60)) {
            read_line(&line);
        }

        #[test]
        fn a_quoted_value_is_read_back(value in "[^\u{0}\n]{0,30}") {
            let quoted = value.replace('\\', "\\\\").replace('\'', "''");
            let line = format!("name = '{quoted}' # comment");
            prop_assert_eq!(read_line(line.as_bytes()), Line::Setting { name: "name".to_owned(), value });
        }
    }
}
