locals {
  day = 86400
}

resource "google_storage_bucket" "this" {
  name                        = var.name
  location                    = var.location
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = var.force_destroy

  # What is deleted is gone: pictures are their users' own.
  soft_delete_policy {
    retention_duration_seconds = 0
  }
  versioning {
    enabled = false
  }

  # A picture lives as long as the record of its job: RESULT_TTL.
  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      age = var.result_ttl / local.day
    }
  }
  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 1
    }
  }

  # The page uploads with a signed URL from the browser.
  cors {
    origin          = var.origins
    method          = ["GET", "PUT"]
    response_header = ["Content-Type"]
    max_age_seconds = 3600
  }
}

resource "google_storage_bucket_iam_member" "roles" {
  for_each = var.members

  bucket = google_storage_bucket.this.name
  role   = each.value.role
  member = each.value.member
}

# ---- Uploads tell the courier, where wanted

data "google_storage_project_service_account" "this" {
  count = var.notify ? 1 : 0
}

resource "google_pubsub_topic" "uploads" {
  count                      = var.notify ? 1 : 0
  name                       = "${var.name}-uploads"
  message_retention_duration = "86400s"
}

resource "google_pubsub_topic_iam_member" "uploads" {
  count  = var.notify ? 1 : 0
  topic  = google_pubsub_topic.uploads[0].id
  role   = "roles/pubsub.publisher"
  member = "serviceAccount:${data.google_storage_project_service_account.this[0].email_address}"
}

resource "google_storage_notification" "uploads" {
  count              = var.notify ? 1 : 0
  bucket             = google_storage_bucket.this.name
  topic              = google_pubsub_topic.uploads[0].id
  payload_format     = "JSON_API_V1"
  event_types        = ["OBJECT_FINALIZE"]
  object_name_prefix = "input/"
  depends_on         = [google_pubsub_topic_iam_member.uploads]
}
