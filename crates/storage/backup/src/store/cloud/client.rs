//! The client of each provider: made of a location and of credentials, and used through one interface.

use std::sync::Arc;

use object_store::aws::S3ConditionalPut;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{ClientOptions, Error, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};

use super::{CredentialSource, Timeouts};
use crate::location::{CloudLocation, Provider};

/// What every provider's client can do.
pub(super) trait Cloud: ObjectStore + PaginatedListStore {}

impl<C: ObjectStore + PaginatedListStore> Cloud for C {}

/// A client, which many requests share.
pub(super) type Client = Arc<dyn Cloud>;

/// A client of the location's provider. Nothing is asked of anybody yet.
///
/// # Errors
/// When there are no credentials, or settings that make no sense.
pub(super) fn build(
    location: &CloudLocation,
    credentials: &CredentialSource,
    timeouts: Timeouts,
) -> Result<Client, Error> {
    let options = ClientOptions::new()
        .with_connect_timeout(timeouts.connect)
        .with_timeout(timeouts.request)
        .with_allow_http(location.endpoint.as_ref().is_some_and(|url| url.starts_with("http://")));
    // Whoever calls knows what else there is to do than to ask again.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    Ok(match location.provider {
        Provider::S3 => Arc::new(s3(location, credentials, options, retry)?),
        Provider::Google => {
            let mut builder = credentials
                .google()
                .with_bucket_name(&location.bucket)
                .with_client_options(options)
                .with_retry(retry);
            if let Some(endpoint) = &location.endpoint {
                builder = builder.with_base_url(endpoint);
            }
            Arc::new(builder.build()?)
        }
        Provider::Azure => {
            let mut builder = credentials
                .azure()
                .with_container_name(&location.bucket)
                .with_client_options(options)
                .with_retry(retry);
            if let Some(account) = &location.account {
                builder = builder.with_account(account);
            }
            if let Some(endpoint) = &location.endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            Arc::new(builder.build()?)
        }
    })
}

fn s3(
    location: &CloudLocation,
    credentials: &CredentialSource,
    options: ClientOptions,
    retry: RetryConfig,
) -> Result<object_store::aws::AmazonS3, Error> {
    let mut builder = credentials
        .s3()
        .with_bucket_name(&location.bucket)
        .with_client_options(options)
        .with_retry(retry)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // One by one: not everything that speaks S3 knows the request for many.
        .with_disable_bulk_delete(true);
    if let Some(endpoint) = &location.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &location.region {
        builder = builder.with_region(region);
    }
    if let Some(key) = &location.sse_kms_key_id {
        builder = builder.with_sse_kms_encryption(key);
    }
    builder.build()
}

/// The object whose name is a listing's prefix to its end. The client leaves it out of Azure's listings, as it would a folder.
///
/// # Errors
/// When the store does not say.
pub(super) async fn named_as_prefix(
    provider: Provider,
    client: &dyn Cloud,
    prefix: &str,
) -> Result<Vec<ObjectMeta>, Error> {
    if provider != Provider::Azure || prefix.is_empty() || prefix.ends_with('/') {
        return Ok(Vec::new());
    }
    match client.head(&Path::from(prefix)).await {
        Ok(object) => Ok(vec![object]),
        Err(Error::NotFound { .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
