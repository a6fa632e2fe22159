//! How a checkpoint has a state that is shared, not copied, because appends wait while it is looked at.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::pages::materialized_state::MaterializedState;

pub(crate) fn serialize<S: Serializer>(
    materialized: &Arc<MaterializedState>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    MaterializedState::serialize(materialized, serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Arc<MaterializedState>, D::Error> {
    MaterializedState::deserialize(deserializer).map(Arc::new)
}
