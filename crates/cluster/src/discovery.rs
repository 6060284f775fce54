//! Which kinds the API serves: for the controllers that must reach all of them.

use serde_json::Value;

use crate::{Error, Resource};

/// Every kind that has all of `verbs`, in its group's preferred version, without subresources.
pub async fn resources(client: &kube::Client, verbs: &[&str]) -> Result<Vec<Resource>, Error> {
    let mut found = Vec::new();
    read(client, "/api/v1", "", "v1", verbs, &mut found).await?;
    let groups = get(client, "/apis").await?;
    for group in groups["groups"].as_array().into_iter().flatten() {
        let name = group["name"].as_str().unwrap_or_default();
        let version = group["preferredVersion"]["version"].as_str().unwrap_or_default();
        read(client, &format!("/apis/{name}/{version}"), name, version, verbs, &mut found).await?;
    }
    Ok(found)
}

async fn read(
    client: &kube::Client,
    path: &str,
    group: &str,
    version: &str,
    verbs: &[&str],
    found: &mut Vec<Resource>,
) -> Result<(), Error> {
    let list = get(client, path).await?;
    for r in list["resources"].as_array().into_iter().flatten() {
        let text = |field: &str| r[field].as_str().unwrap_or_default().to_string();
        let has = |verb: &&str| r["verbs"].as_array().is_some_and(|v| v.iter().any(|v| v == *verb));
        let plural = text("name");
        if plural.contains('/') || !verbs.iter().all(has) {
            continue;
        }
        found.push(Resource {
            group: group.to_string().into(),
            version: version.to_string().into(),
            kind: text("kind").into(),
            plural: plural.into(),
            namespaced: r["namespaced"] == true,
        });
    }
    Ok(())
}

async fn get(client: &kube::Client, path: &str) -> Result<Value, Error> {
    let what = format!("discover {path}");
    let request = http::Request::get(path)
        .header(http::header::ACCEPT, "application/json")
        .body(Vec::new())
        .map_err(|e| Error::Answer { what: what.clone(), cause: e.to_string() })?;
    client.request(request).await.map_err(|e| Error::of(&what, e))
}
