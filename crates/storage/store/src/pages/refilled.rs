//! What peers brought of a segment's state as of a later point, as a checkpoint names it beside the current state. How it
//! comes about is in [`crate::refill`].

use std::sync::Arc;

use borealis_quorum::DurablePoint;
use borealis_types::PageKey;
use serde::{Deserialize, Serialize};

use crate::pages::materialized_state::MaterializedState;
use crate::pages::region::Region;
use crate::pages::shared_state;

/// What was brought so far and is durable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Refilled {
    /// What it is to be as of.
    pub point: DurablePoint,
    /// Pages up to this one are as of the point; others are as of any earlier LSN, or damaged.
    pub through: Option<PageKey>,
    /// All of it is as of the point, and so are sizes and values.
    pub is_whole: bool,
    #[serde(with = "shared_state")]
    pub state: Arc<MaterializedState>,
    /// Regions that an extent of the state has left. The checkpoint may still name them.
    pub freed: Vec<Region>,
}
