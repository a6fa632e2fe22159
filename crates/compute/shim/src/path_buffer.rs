//! Names of files that this library makes up.

use std::ffi::CStr;

/// Longest path this library makes up, with its zero byte.
pub(crate) const PATH_BYTES: usize = 4096;

/// A path made at loading: PostgreSQL's processes must not allocate in here.
pub(crate) struct PathBuffer([u8; PATH_BYTES]);

impl PathBuffer {
    /// The file of this name beside the folder; `None` if that is too long.
    pub(crate) fn beside(folder: &[u8], name: &str) -> Option<PathBuffer> {
        let parent = folder.get(..=folder.iter().rposition(|&byte| byte == b'/')?)?;
        let mut buffer = PathBuffer([0; PATH_BYTES]);
        let end = parent.len() + name.len();
        buffer.0.get_mut(..parent.len())?.copy_from_slice(parent);
        buffer.0.get_mut(parent.len()..end)?.copy_from_slice(name.as_bytes());
        (end < PATH_BYTES).then_some(buffer)
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_beside_a_folder_is_named() {
        let beside = |folder: &str| PathBuffer::beside(folder.as_bytes(), "pg_control");
        assert_eq!(
            beside("/dev/shm/b/data").map(|path| path.as_c_str().to_owned()),
            Some(c"/dev/shm/b/pg_control".into())
        );
        assert!(beside("data").is_none());
        let long = format!("/{}/data", "x".repeat(PATH_BYTES - 12));
        assert!(beside(&long).is_none(), "no room for the zero byte");
        assert!(
            beside(&long[1..].replacen('x', "/", 1))
                .is_some_and(|path| path.as_c_str().to_bytes().len() == PATH_BYTES - 1)
        );
    }
}
